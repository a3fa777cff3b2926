// A foreign client: chunked Oblivious HTTP over npm's `hpke` packages, sharing no code with Cloister.
//   node peer.mjs URL BODY.json [mlkem|x25519]
// Prints the inner status on standard error and the answer's content on standard output as it streams.
// Exit code 0 only when the final chunk authenticated.
import { readFileSync } from 'node:fs'
import * as HPKE from 'hpke'
import { KEM_MLKEM768_X25519, KEM_DHKEM_X25519_HKDF_SHA256 } from '@panva/hpke-noble'

const [url, file, kem = 'mlkem'] = process.argv.slice(2)
const utf8 = (text) => new TextEncoder().encode(text)
const join = (...parts) => Buffer.concat(parts.map((part) => Buffer.from(part)))
const u16 = (n) => [n >> 8, n & 255]
const KEMS = { mlkem: [0x647a, 1216, KEM_MLKEM768_X25519], x25519: [0x20, 32, KEM_DHKEM_X25519_HKDF_SHA256] }

function varint(n) {
  if (n < 64) return [n]
  if (n < 16384) return u16(n | 0x4000)
  return [0x80 | (n >> 24), (n >> 16) & 255, (n >> 8) & 255, n & 255]
}
const vector = (bytes) => join(varint(bytes.length), bytes)

// The key configuration (RFC 9458 section 3): the first one of the wanted KEM, with AES-256-GCM.
const [kemId, keySize, KEM] = KEMS[kem]
const configs = Buffer.from(await (await fetch(`${url}/.well-known/ohttp-gateway`)).arrayBuffer())
let config
for (let at = 0; at < configs.length; at += 2 + configs.readUInt16BE(at)) {
  const item = configs.subarray(at + 2, at + 2 + configs.readUInt16BE(at))
  if (item.readUInt16BE(1) === kemId) config ??= item
}
if (!config) throw new Error('no key of that kind')
const suite = new HPKE.CipherSuite(KEM, HPKE.KDF_HKDF_SHA256, HPKE.AEAD_AES_256_GCM)
const publicKey = await suite.DeserializePublicKey(config.subarray(3, 3 + keySize))

// The request: known-length Binary HTTP (RFC 9292), sealed as two chunks.
const content = readFileSync(file)
const fields = join(vector(utf8('content-type')), vector(utf8('application/json')))
const control = ['POST', 'https', 'replica', '/v1/chat/completions'].map((part) => vector(utf8(part)))
const message = join([0], ...control, vector(fields), vector(content), [0])
const header = join([config[0]], u16(kemId), u16(1), u16(2))
const info = join(utf8('message/bhttp chunked request'), [0], header)
const { encapsulatedSecret: enc, ctx } = await suite.SetupSender(publicKey, { info })
const half = message.length >> 1
const first = await ctx.Seal(message.subarray(0, half))
const last = await ctx.Seal(message.subarray(half), utf8('final'))
const body = join(header, enc, vector(first), [0], last)

const response = await fetch(`${url}/.well-known/ohttp-gateway`, {
  method: 'POST',
  headers: { 'content-type': 'message/ohttp-chunked-req', incremental: '?1' },
  body,
})
if (response.headers.get('content-type') !== 'message/ohttp-chunked-res') {
  console.error(`outer ${response.status}`)
  process.exit(2)
}

// The response: nonce, then chunks under a key from the exported secret (draft-ietf-ohai-chunked-ohttp).
const subtle = globalThis.crypto.subtle
const hmac = async (key, data) =>
  Buffer.from(await subtle.sign('HMAC', await subtle.importKey('raw', key, { name: 'HMAC', hash: 'SHA-256' }, false, ['sign']), data))
let aead, base
async function keys(nonce) {
  const secret = await ctx.Export(utf8('message/bhttp chunked response'), 32)
  const prk = await hmac(join(enc, nonce), secret)
  aead = await subtle.importKey('raw', await hmac(prk, join(utf8('key'), [1])), 'AES-GCM', false, ['decrypt'])
  base = (await hmac(prk, join(utf8('nonce'), [1]))).subarray(0, 12)
}
let count = 0
async function open(ciphertext, aad) {
  const iv = Buffer.from(base)
  iv.writeUInt32BE((iv.readUInt32BE(8) ^ count++) >>> 0, 8)
  return Buffer.from(await subtle.decrypt({ name: 'AES-GCM', iv, additionalData: utf8(aad) }, aead, ciphertext))
}

// Indeterminate-length Binary HTTP out of the plaintexts: status and fields, content chunks, trailers.
let plain = Buffer.alloc(0)
let state = 'head'
function read(bytes, at) {
  if (at >= bytes.length) return null
  const width = 1 << (bytes[at] >> 6)
  if (at + width > bytes.length) return null
  let value = bytes[at] & 0x3f
  for (let i = 1; i < width; i++) value = value * 256 + bytes[at + i]
  return [value, at + width]
}
function digest(bytes) {
  plain = join(plain, bytes)
  for (;;) {
    if (state === 'head') {
      const status = read(plain, 1)
      if (!status || plain[0] !== 3) return
      let at = status[1]
      for (;;) {
        const name = read(plain, at)
        if (!name) return
        if (name[0] === 0) { at = name[1]; break }
        const value = read(plain, name[1] + name[0])
        if (!value) return
        at = value[1] + value[0]
      }
      console.error(`status ${status[0]}`)
      plain = plain.subarray(at)
      state = 'content'
    } else if (state === 'content') {
      const size = read(plain, 0)
      if (!size || plain.length < size[1] + size[0]) return
      process.stdout.write(plain.subarray(size[1], size[1] + size[0]))
      plain = plain.subarray(size[1] + size[0])
      if (size[0] === 0) state = 'trailers'
    } else return
  }
}

let wire = Buffer.alloc(0)
let final = false
for await (const piece of response.body) {
  wire = join(wire, piece)
  if (!aead) {
    if (wire.length < 32) continue
    await keys(wire.subarray(0, 32))
    wire = wire.subarray(32)
  }
  while (!final) {
    const size = read(wire, 0)
    if (!size) break
    if (size[0] === 0) { final = true; wire = wire.subarray(size[1]); break }
    if (wire.length < size[1] + size[0]) break
    digest(await open(wire.subarray(size[1], size[1] + size[0]), ''))
    wire = wire.subarray(size[1] + size[0])
  }
}
if (!final) {
  console.error('truncated')
  process.exit(3)
}
digest(await open(wire, 'final'))
if (state !== 'trailers') {
  console.error('incomplete')
  process.exit(4)
}
