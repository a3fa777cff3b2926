/* The first process of a Cloister enclave image. It loads nothing but the NSM driver where the kernel has it as a module,
 * says that it lives (0xB7 to CID 3 port 9000, what nitro-cli waits for), checks every file of the root file system against
 * /manifest, moves there and runs the one command of the image. When anything is not as it was built, it stops the machine:
 * a parent that gives too little memory gets a tree with holes and the registers of a whole one ("Initramfs unpacking
 * failed" does not stop a kernel, and files keep their full length), so lengths and names would not be enough.
 *
 * Layout (as AWS's own images): ramdisk 0 holds /init and optionally /nsm.ko; ramdisk 1 holds /rootfs, /cmd, /env, /manifest. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/vm_sockets.h>
#include <net/if.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define ROOT "/rootfs"
#define HEARTBEAT 0xB7
#define HEARTBEAT_PORT 9000
#define PARENT_CID 3

static void stop(const char *why, const char *what)
{
    dprintf(2, "init: stopped: %s%s%s\n", why, what ? ": " : "", what ? what : "");
    sync();
    reboot(RB_AUTOBOOT); /* with reboot=k this ends the virtual machine */
    for (;;) pause();
}

/* ---- SHA-256 (FIPS 180-4) */
struct sha { uint32_t h[8]; uint64_t length; unsigned char block[64]; };
static const uint32_t K[64] = {
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5, 0xd807aa98, 0x12835b01, 0x243185be,
    0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174, 0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa,
    0x5cb0a9dc, 0x76f988da, 0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967, 0x27b70a85,
    0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85, 0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3,
    0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070, 0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f,
    0x682e6ff3, 0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2 };
#define ROR(x, n) ((x) >> (n) | (x) << (32 - (n)))

static void sha_block(struct sha *s, const unsigned char *p)
{
    uint32_t w[64], v[8];
    for (int i = 0; i < 16; i++) { memcpy(&w[i], p + 4 * i, 4); w[i] = __builtin_bswap32(w[i]); }
    for (int i = 16; i < 64; i++)
        w[i] = w[i - 16] + (ROR(w[i - 15], 7) ^ ROR(w[i - 15], 18) ^ w[i - 15] >> 3) + w[i - 7] + (ROR(w[i - 2], 17) ^ ROR(w[i - 2], 19) ^ w[i - 2] >> 10);
    memcpy(v, s->h, sizeof v);
    for (int i = 0; i < 64; i++) {
        uint32_t a = v[7] + (ROR(v[4], 6) ^ ROR(v[4], 11) ^ ROR(v[4], 25)) + ((v[4] & v[5]) ^ (~v[4] & v[6])) + K[i] + w[i];
        uint32_t b = (ROR(v[0], 2) ^ ROR(v[0], 13) ^ ROR(v[0], 22)) + ((v[0] & v[1]) ^ (v[0] & v[2]) ^ (v[1] & v[2]));
        memmove(v + 1, v, 7 * sizeof *v);
        v[4] += a; v[0] = a + b;
    }
    for (int i = 0; i < 8; i++) s->h[i] += v[i];
}
static void sha_start(struct sha *s)
{
    static const uint32_t first[8] = { 0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19 };
    memcpy(s->h, first, sizeof first); s->length = 0;
}
static void sha_add(struct sha *s, const unsigned char *p, size_t n)
{
    size_t at = s->length & 63;
    s->length += n;
    if (at) {
        size_t k = n < 64 - at ? n : 64 - at;
        memcpy(s->block + at, p, k); p += k; n -= k;
        if (at + k < 64) return;
        sha_block(s, s->block);
    }
    for (; n >= 64; p += 64, n -= 64) sha_block(s, p);
    memcpy(s->block, p, n);
}
static void sha_end(struct sha *s, char hex[65])
{
    uint64_t bits = __builtin_bswap64(s->length * 8);
    unsigned char pad[72] = { 0x80 };
    size_t n = 64 - ((s->length + 8) & 63);
    memcpy(pad + n, &bits, 8);
    sha_add(s, pad, n + 8);
    for (int i = 0; i < 8; i++) sprintf(hex + 8 * i, "%08x", s->h[i]);
}

/* ---- steps */
static void mount_or_stop(const char *source, const char *target, const char *type, unsigned long flags, const char *options)
{
    if (mount(source, target, type, flags, options) && errno != EBUSY) stop("cannot mount", target);
}

static void heartbeat(void)
{
    struct sockaddr_vm parent = { .svm_family = AF_VSOCK, .svm_cid = PARENT_CID, .svm_port = HEARTBEAT_PORT };
    unsigned char byte = HEARTBEAT;
    int s = socket(AF_VSOCK, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (s < 0 || connect(s, (void *)&parent, sizeof parent)) stop("the parent does not answer the heartbeat", strerror(errno));
    if (write(s, &byte, 1) != 1 || read(s, &byte, 1) != 1 || byte != HEARTBEAT) stop("the parent answered the heartbeat wrongly", NULL);
    close(s);
}

static void check_file(const char *path, const char *digest)
{
    static unsigned char buffer[1 << 16];
    struct stat st; struct sha s; char hex[65]; ssize_t n; int f;
    if (lstat(path, &st) || !S_ISREG(st.st_mode) || (f = open(path, O_RDONLY | O_CLOEXEC)) < 0) stop("missing", path);
    sha_start(&s);
    while ((n = read(f, buffer, sizeof buffer)) > 0) sha_add(&s, buffer, n);
    close(f);
    sha_end(&s, hex);
    if (n < 0 || strcmp(hex, digest)) stop("damaged (is there too little memory?)", path);
}

static void check_link(const char *path, const char *digest)
{
    unsigned char target[4096]; struct sha s; char hex[65];
    ssize_t n = readlink(path, (char *)target, sizeof target);
    if (n < 0) stop("missing", path);
    sha_start(&s); sha_add(&s, target, n); sha_end(&s, hex);
    if (strcmp(hex, digest)) stop("damaged", path);
}

/* `f SHA256 NAME`, `l SHA256 NAME`, `d - NAME`, and `end COUNT` last. */
static void check_manifest(void)
{
    FILE *f = fopen("/manifest", "re"); char *line = NULL; size_t room = 0; ssize_t n; long count = 0; int ended = 0;
    if (!f) stop("missing", "/manifest");
    while ((n = getline(&line, &room, f)) > 0) {
        char path[4200], kind, digest[65]; struct stat st; int at = 0; long total;
        if (ended || line[n - 1] != '\n') stop("the manifest is damaged", NULL);
        line[n - 1] = 0;
        if (sscanf(line, "end %ld", &total) == 1) { if (total != count) stop("the manifest is damaged", NULL); ended = 1; continue; }
        if (sscanf(line, "%c %64s %n", &kind, digest, &at) != 2 || !at || !line[at] || n > 4096) stop("the manifest is damaged", NULL);
        snprintf(path, sizeof path, ROOT "/%s", line + at);
        if (kind == 'f') check_file(path, digest);
        else if (kind == 'l') check_link(path, digest);
        else if (kind != 'd' || lstat(path, &st) || !S_ISDIR(st.st_mode)) stop("missing", path);
        count++;
    }
    if (!ended) stop("the manifest is cut", NULL);
    free(line); fclose(f);
    dprintf(2, "init: %ld files as built\n", count);
}

static char **lines(const char *path)
{
    FILE *f = fopen(path, "re"); char **list = calloc(128, sizeof *list), *line = NULL; size_t room = 0; ssize_t n; int i = 0;
    if (!f || !list) stop("missing", path);
    while (i < 127 && (n = getline(&line, &room, f)) > 0) { if (line[n - 1] == '\n') line[n - 1] = 0; list[i++] = strdup(line); }
    free(line); fclose(f);
    if (!i) stop("empty", path);
    return list;
}

int main(void)
{
    if (mount("dev", "/dev", "devtmpfs", MS_NOSUID | MS_NOEXEC, NULL) && errno != EBUSY) stop("cannot mount", "/dev");
    int console = open("/dev/console", O_RDWR);
    if (console >= 0) { dup2(console, 0); dup2(console, 1); dup2(console, 2); if (console > 2) close(console); }
    int module = open("/nsm.ko", O_RDONLY | O_CLOEXEC);
    if (module >= 0) {
        if (syscall(SYS_finit_module, module, "", 0) && errno != EEXIST) stop("cannot load", "/nsm.ko");
        close(module); unlink("/nsm.ko");
    }
    heartbeat();
    check_manifest();
    char **environment = lines("/env"), **command = lines("/cmd");

    if (mount(ROOT, ROOT, NULL, MS_BIND, NULL) || chdir(ROOT) || mount(".", "/", NULL, MS_MOVE, NULL) || chroot(".") || chdir("/"))
        stop("cannot move to the root file system", strerror(errno));
    mount_or_stop("dev", "/dev", "devtmpfs", MS_NOSUID | MS_NOEXEC, NULL);
    mount_or_stop("proc", "/proc", "proc", MS_NODEV | MS_NOSUID | MS_NOEXEC, NULL);
    mount_or_stop("sysfs", "/sys", "sysfs", MS_NODEV | MS_NOSUID | MS_NOEXEC | MS_RDONLY, NULL);
    mount_or_stop("tmpfs", "/run", "tmpfs", MS_NODEV | MS_NOSUID | MS_NOEXEC, "mode=0755");
    mount_or_stop("tmpfs", "/tmp", "tmpfs", MS_NODEV | MS_NOSUID | MS_NOEXEC, NULL);
    mkdir("/dev/shm", 01777);
    mount_or_stop("shm", "/dev/shm", "tmpfs", MS_NODEV | MS_NOSUID | MS_NOEXEC, NULL);
    int s = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (s >= 0) {
        struct ifreq loopback = { .ifr_flags = IFF_UP | IFF_RUNNING };
        strcpy(loopback.ifr_name, "lo");
        ioctl(s, SIOCSIFFLAGS, &loopback);
        close(s);
    }
    pid_t child = fork(), ended;
    if (!child) { setsid(); execvpe(command[0], command, environment); stop("cannot run", command[0]); }
    int status = 0;
    while ((ended = wait(&status)) != child) if (ended < 0 && errno != EINTR) break;
    char text[32]; snprintf(text, sizeof text, "status 0x%x", status);
    stop("the command ended", text);
}
