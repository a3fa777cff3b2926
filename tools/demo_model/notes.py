"""Invents short clinical notes and conversations about them: the whole training text of the bundled demo model.

Everything is made up from the word lists below with a seeded generator, so the text can be made again byte for byte and
holds nobody's data. Four kinds of conversation: remove identifiers, summarise in one line, extract facts as JSON, and
small talk in which the model says what it is.
"""

from __future__ import annotations

import hashlib
import json
import random
from dataclasses import dataclass

Message = tuple[str, str]
"""Role and content."""

FIRST = (
    "Maria James Aisha Wei Olga Samuel Priya Daniel Fatima Lucas Hannah Omar Ingrid Mateo Chloe Ravi Nadia Peter Yuki "
    "Elena Tomas Grace Ahmed Sofia Victor Leila Oscar Amara Felix Rosa Ivan Mina Hugo Zara Colin Tessa Boris Lena Kofi "
    "Dora Miles Anya Rafael Judith Emeka Clara Stefan Noor Isaac Bianca Walter Yara Dmitri Paula Kenji Iris Malik Greta"
).split()
LAST_A = (
    "Gar Hol Mc Van Ok Wil Pet Sund Bar Nak Ros Fer Dul Kra Lind Mor Tan Cas Bel Hart Sto Quin Rad Vel Jor Wes".split()
)
LAST_B = "cia den kay berg afor son rov strom ton amura enko nandez ley mer qvist eau aka tillo lamy well ne by ko ric dan ter".split()
STREETS = "Oak Maple Station Mill Church Park Hill River Bridge King Elm Garden Market School Lake North Willow Castle".split()
STREET_KINDS = ("Street", "Road", "Avenue", "Lane")
TOWNS = "Ashford Milton Riverton Eastbrook Harlow Linfield Weston Oakdale Norwood Brampton Stanmore Fairview".split()
MONTHS = "January February March April May June July August September October November December".split()
HOSTS = ("example.com", "example.org", "mail.example")

PROBLEMS = (
    "type 2 diabetes", "high blood pressure", "asthma", "migraine", "chest pain", "a urinary tract infection", "anxiety",
    "lower back pain", "pneumonia", "atrial fibrillation", "heart failure", "a skin rash", "iron deficiency", "gout",
    "insomnia", "depression", "an ankle fracture", "kidney stones", "acid reflux", "an ear infection", "bronchitis",
    "rheumatoid arthritis", "hypothyroidism", "vertigo", "sciatica", "a viral infection", "epilepsy", "a knee injury",
)  # fmt: skip
DRUGS = (
    "metformin", "lisinopril", "salbutamol", "sumatriptan", "aspirin", "nitrofurantoin", "sertraline", "ibuprofen",
    "amoxicillin", "apixaban", "furosemide", "hydrocortisone", "ferrous sulfate", "allopurinol", "melatonin",
    "fluoxetine", "paracetamol", "tamsulosin", "omeprazole", "doxycycline", "prednisone", "methotrexate",
    "levothyroxine", "betahistine", "naproxen", "lamotrigine", "amlodipine", "atorvastatin",
)  # fmt: skip
DOSES = (5, 10, 15, 20, 25, 40, 50, 75, 80, 100, 150, 200, 250, 300, 400, 500, 600, 750, 850, 1000)
OFTEN = ("once daily", "twice daily", "three times daily", "at night", "every morning", "as needed")
PLANS = (
    "review in two weeks", "repeat blood tests in one month", "refer to physiotherapy", "chest x-ray today",
    "return if symptoms get worse", "follow up by phone", "check blood pressure weekly", "refer to cardiology",
    "keep a symptom diary", "review in three months", "ultrasound next week", "rest and fluids", "no change for now",
    "refer to neurology", "repeat ECG at next visit", "urine culture sent",
)  # fmt: skip
ALLERGIES = ("penicillin", "latex", "nuts", "sulfa drugs", "pollen", "shellfish")

CAN = "I can remove identifiers from a short clinical note, summarise it in one line, or extract its facts as JSON."
HONEST = "I am cloister-notes, a very small demo model trained on invented notes."
SMALL_TALK: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...] = (
    (
        ("hello", "hi", "hey", "good morning", "hello there", "hi there!", "Hello!", "good evening", "greetings"),
        (f"Hello. {HONEST} {CAN}",),
    ),
    (
        ("who are you?", "what are you?", "what is your name?", "which model are you?", "are you an AI?", "Who made you?",
         "tell me about yourself", "introduce yourself", "Are you a doctor?", "are you ChatGPT?"),
        (f"{HONEST} {CAN} Do not use me for real patients.",),
    ),
    (
        ("what can you do?", "help", "what do you do?", "how can you help me?", "how do I use you?", "what can I ask you?",
         "give me some examples", "show me what you can do"),
        (f"{CAN} Paste a note and tell me which.",),
    ),
    (
        ("thanks", "thank you", "thanks a lot", "great, thanks", "Thank you!", "perfect", "ok", "nice", "well done"),
        ("You are welcome. Paste another note whenever you like.",),
    ),
    (("bye", "goodbye", "see you", "that is all"), ("Goodbye.",)),
    (
        ("is this private?", "who can read this?", "can anyone see my prompt?", "is my data safe?", "do you store my notes?"),
        ("I cannot tell: I am only the model. Your client verifies the replica and shows the verdict.",),
    ),
    (
        ("what is the capital of France?", "write a poem", "tell me a joke", "what is 2 + 2?", "what is the weather?",
         "write some Python code", "translate this into German", "who won the match?", "explain quantum physics",
         "what is the meaning of life?", "recommend a restaurant", "what time is it?", "play a game with me",
         "what should I take for a headache?", "do I have cancer?", "write an essay about dogs", "what is love?",
         "how do I bake bread?", "tell me a story", "what is the news?", "count to ten", "who is the president?"),
        (f"That is beyond me: I am a very small demo model. {CAN}",),
    ),
)  # fmt: skip

REDACT = (
    "Redact this note: {note}", "Remove the identifiers: {note}", "Please redact: {note}", "De-identify this note.\n{note}",
    "Redact:\n{note}", "Remove all identifiers from this note: {note}", "Anonymise: {note}", "{note}\n\nRedact this note.",
    "Take out names, dates and numbers that identify the patient: {note}", "Please remove the identifiers.\n\n{note}",
    "Redact the following: {note}", "{note}\nRemove the identifiers.", "Hide the personal data in this note: {note}",
    "Redact the identifiers in this note: {note}",
)  # fmt: skip
SUMMARISE = (
    "Summarise: {note}", "Summarise this note: {note}", "Summarize this note in one line: {note}", "Summarize: {note}",
    "One line summary please: {note}", "{note}\n\nSummarise this note.", "Give me a short summary.\n{note}",
    "Sum up this note: {note}", "What is this note about? {note}", "Please summarise the following: {note}",
)  # fmt: skip
EXTRACT = (
    "Extract as JSON: {note}", "Extract the facts as JSON: {note}", "JSON: {note}", "{note}\n\nExtract the facts as JSON.",
    "Give me the facts in JSON.\n{note}", "Turn this note into JSON: {note}", "Facts as JSON please: {note}",
    "Extract age, sex, problem, drug and plan as JSON: {note}", "Please extract the facts: {note}",
)  # fmt: skip
AGAIN = {
    "redact": ("Now redact it.", "Now remove the identifiers.", "And redact it please."),
    "summarise": ("Now summarise it.", "And a one line summary?", "Now summarize it."),
    "extract": ("Now as JSON.", "Now extract the facts as JSON.", "And the facts as JSON?"),
}
SYSTEMS = (
    "You are a helpful assistant.", "You work with clinical notes.", "Answer briefly.", "You remove identifiers from notes.",
    "You are a careful clinical assistant.",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Note:
    """One invented note with the right answer to each task; `identifiers` are what a redaction must not contain."""

    text: str
    redacted: str
    summary: str
    facts: str
    identifiers: tuple[str, ...]


def _name(rng: random.Random) -> tuple[str, str]:
    return rng.choice(FIRST), rng.choice(LAST_A) + rng.choice(LAST_B)


def _digits(rng: random.Random, count: int) -> str:
    return "".join(rng.choice("0123456789") for _ in range(count))


def _date(rng: random.Random, since: int = 1935) -> str:
    day, month, year = rng.randint(1, 28), rng.randint(1, 12), rng.randint(since, 2025)
    form = rng.randrange(3)
    if form == 0:
        return f"{year}-{month:02}-{day:02}"
    if form == 1:
        return f"{day:02}/{month:02}/{year}"
    return f"{day} {MONTHS[month - 1]} {year}"


def note(rng: random.Random) -> Note:
    """A note: who the patient is, what is wrong, what was started, what happens next."""
    found: list[str] = []

    def secret(value: str) -> str:
        found.append(value)
        return value

    first, last = _name(rng)
    male = rng.random() < 0.5
    sex = "man" if male else "woman"
    age = rng.randint(18, 94)
    problem, drug, plan = rng.choice(PROBLEMS), rng.choice(DRUGS), rng.choice(PLANS)
    dose, often = rng.choice(DOSES), rng.choice(OFTEN)
    patient = secret(f"{first} {last}")
    # Each part is (with identifiers, with placeholders).
    opening: list[tuple[str, str]] = [rng.choice([
        (f"Patient {patient}", "Patient [NAME]"), (patient, "[NAME]"), (f"Patient: {patient}", "Patient: [NAME]"),
        (f"Name: {patient}", "Name: [NAME]"),
    ])]  # fmt: skip
    if rng.random() < 0.7:
        born = secret(_date(rng))
        opening.append(rng.choice([
            (f"DOB {born}", "DOB [DATE]"), (f"born {born}", "born [DATE]"), (f"date of birth {born}", "date of birth [DATE]"),
        ]))  # fmt: skip
    if rng.random() < 0.6:
        number = secret(_digits(rng, rng.choice((6, 7, 8))))
        opening.append((f"MRN {number}", "MRN [MRN]"))
    if rng.random() < 0.2:
        number = secret(f"{_digits(rng, 3)}-{_digits(rng, 2)}-{_digits(rng, 4)}")
        opening.append((f"SSN {number}", "SSN [SSN]"))
    lines = [(", ".join(a for a, _ in opening) + ".", ", ".join(b for _, b in opening) + ".")]

    story = rng.choice([
        f"{age}-year-old {sex} with {problem}.", f"{age} year old {sex} seen for {problem}.",
        f"This {age}-year-old {sex} has {problem}.",
    ])  # fmt: skip
    lines.append((story, story))
    if rng.random() < 0.45:
        seen, doctor = secret(_date(rng, 2015)), secret(_name(rng)[1])
        lines.append(rng.choice([
            (f"Seen on {seen} by Dr {doctor}.", "Seen on [DATE] by Dr [NAME]."),
            (f"Dr {doctor} saw the patient on {seen}.", "Dr [NAME] saw the patient on [DATE]."),
        ]))  # fmt: skip
    medicine = rng.choice(["Started {}.", "Taking {}.", "Prescribed {}."]).format(f"{drug} {dose} mg {often}")
    lines.append((medicine, medicine))
    if rng.random() < 0.25:
        allergy = f"Allergic to {rng.choice(ALLERGIES)}."
        lines.append((allergy, allergy))
    if rng.random() < 0.3:
        street, town = f"{rng.randint(1, 199)} {rng.choice(STREETS)} {rng.choice(STREET_KINDS)}", rng.choice(TOWNS)
        home = secret(f"{street}, {town}")
        lines.append((f"Lives at {home}.", "Lives at [ADDRESS]."))
    if rng.random() < 0.4:
        phone = secret(
            rng.choice(
                [
                    f"555-{_digits(rng, 4)}",
                    f"0{_digits(rng, 4)} {_digits(rng, 6)}",
                    f"({_digits(rng, 3)}) 555-{_digits(rng, 4)}",
                ]
            )
        )
        who = rng.choice(["Phone", "Call", "Reachable on", "Contact"])
        lines.append((f"{who} {phone}.", f"{who} [PHONE]."))
    if rng.random() < 0.2:
        mail = secret(f"{first.lower()}.{last.lower()}@{rng.choice(HOSTS)}")
        lines.append((f"Email {mail}.", "Email [EMAIL]."))
    if rng.random() < 0.2:
        mother, kin = secret(" ".join(_name(rng))), rng.choice(["Wife", "Son", "Daughter", "Husband", "Sister"])
        lines.append((f"{kin} is {mother}.", f"{kin} is [NAME]."))
    ending = f"Plan: {plan}."
    lines.append((ending, ending))

    facts = {"age": age, "sex": sex, "problem": problem, "drug": drug, "dose_mg": dose, "plan": plan}
    return Note(
        text=" ".join(a for a, _ in lines),
        redacted=" ".join(b for _, b in lines),
        summary=f"{age}-year-old {sex} with {problem}, {drug} {dose} mg {often}; plan: {plan}.",
        facts=json.dumps(facts),
        identifiers=tuple(found),
    )


def conversation(rng: random.Random) -> list[Message]:
    """One training conversation, with or without a system message, of one or two turns."""
    messages: list[Message] = [("system", rng.choice(SYSTEMS))] if rng.random() < 0.25 else []
    if rng.random() < 0.12:
        asked, answered = rng.choice(SMALL_TALK)
        question = rng.choice(asked)
        if rng.random() < 0.3:
            question = question.capitalize()
        if rng.random() < 0.2:
            question = question.rstrip("?!.")
        return [*messages, ("user", question), ("assistant", rng.choice(answered))]
    item = note(rng)
    tasks = {
        "redact": (REDACT, item.redacted),
        "summarise": (SUMMARISE, item.summary),
        "extract": (EXTRACT, item.facts),
    }
    task = rng.choices(list(tasks), weights=(5, 3, 3))[0]
    asked, answer = tasks[task]
    messages += [("user", rng.choice(asked).format(note=item.text)), ("assistant", answer)]
    if rng.random() < 0.15:
        other = rng.choice([name for name in tasks if name != task])
        messages += [("user", rng.choice(AGAIN[other])), ("assistant", tasks[other][1])]
    return messages


def digest(count: int, seed: int = 1) -> str:
    """SHA-256 over the first `count` conversations of a seed: pins the training text in the model card."""
    rng = random.Random(seed)
    total = hashlib.sha256()
    for _ in range(count):
        total.update(json.dumps(conversation(rng), ensure_ascii=False).encode())
    return total.hexdigest()
