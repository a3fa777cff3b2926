/* PID 1 of the test guest: asks /dev/nsm, talks to its parent over vsock, then serves port 5000 until told to end.
 *
 * To port 5001 of CID 3 go: the answers to DescribeNSM and Attestation, each behind a 4-byte little-endian length, and
 * two bytes that tell what came of connecting to a port nobody listens on and to another CID (an errno each).
 * On port 5000 a connection starts with one letter: 'e' echoes until the end of the stream; 'i' takes 8 bytes n, reads
 * n bytes of the pattern and answers 'y' or 'n'; 'o' takes n and writes n bytes of the pattern; 'h' reads to the end of
 * the stream and only then answers with the count, 8 bytes; 'p' dereferences null as PID 1; 'q' reboots.
 * The pattern is 64-bit little-endian counters. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <linux/vm_sockets.h>
#include <unistd.h>

struct nsm_raw { uint64_t request, request_size, response, response_size; };
#define NSM_RAW _IOWR(0x0A, 0, struct nsm_raw)
#define BLOCK (1 << 20)

static int dial(unsigned cid, unsigned port)
{
    struct sockaddr_vm a = { .svm_family = AF_VSOCK, .svm_cid = cid, .svm_port = port };
    int s = socket(AF_VSOCK, SOCK_STREAM, 0);
    if (s >= 0 && connect(s, (void *)&a, sizeof a) == 0) return s;
    int e = errno;
    close(s);
    return -e;
}

static int all(int s, void *data, size_t n, int out)
{
    char *at = data;
    while (n) {
        ssize_t k = out ? write(s, at, n) : read(s, at, n);
        if (k <= 0) return 0;
        at += k; n -= k;
    }
    return 1;
}

static void ask(int s, const void *request, size_t n)
{
    static char answer[0x3000];
    struct nsm_raw raw = { (uint64_t)request, n, (uint64_t)answer, sizeof answer };
    int f = open("/dev/nsm", O_RDWR);
    uint32_t size = f >= 0 && ioctl(f, NSM_RAW, &raw) == 0 ? raw.response_size : 0;
    if (f < 0) perror("nsm");
    close(f);
    all(s, &size, 4, 1); all(s, answer, size, 1);
}

static void serve(int c)
{
    static uint64_t block[BLOCK / 8], expected[BLOCK / 8];
    char command; uint64_t n = 0, counter = 0; ssize_t k;
    if (read(c, &command, 1) != 1) return;
    if (command == 'e')
        while ((k = read(c, block, BLOCK)) > 0 && all(c, block, k, 1)) ;
    if (command == 'h') {
        while ((k = read(c, block, BLOCK)) > 0) n += k;
        all(c, &n, 8, 1);
    }
    if (command != 'i' && command != 'o') return;
    int good = all(c, &n, 8, 0);
    for (; n && good; n -= n < BLOCK ? n : BLOCK) {
        size_t size = n < BLOCK ? n : BLOCK;
        for (size_t i = 0; i < BLOCK / 8; i++) expected[i] = counter++;
        if (command == 'o') good = all(c, expected, size, 1);
        else good = all(c, block, size, 0) && !memcmp(block, expected, size);
    }
    if (command == 'i') all(c, good ? "y" : "n", 1, 1);
}

int main(void)
{
    mkdir("/dev", 0755);
    mount("dev", "/dev", "devtmpfs", 0, NULL);
    int console = open("/dev/console", O_RDWR);
    dup2(console, 0); dup2(console, 1); dup2(console, 2);
    signal(SIGCHLD, SIG_IGN);
    puts("init: up");

    int s = dial(3, 5001);
    if (s >= 0) {
        static const char attestation[] = "\xa1\x6b" "Attestation" "\xa2\x65" "nonce" "\x44" "once" "\x6a" "public_key" "\x43" "key";
        ask(s, "\x6b" "DescribeNSM", 12);
        ask(s, attestation, sizeof attestation - 1);
        char errors[2] = { -dial(3, 4999), -dial(2, 5001) };
        all(s, errors, 2, 1);
        close(s);
    } else printf("init: parent: %s\n", strerror(-s));

    struct sockaddr_vm a = { .svm_family = AF_VSOCK, .svm_cid = VMADDR_CID_ANY, .svm_port = 5000 };
    int l = socket(AF_VSOCK, SOCK_STREAM, 0);
    bind(l, (void *)&a, sizeof a); listen(l, 256);
    puts("init: serving"); fflush(stdout);
    for (;;) {
        int c = accept(l, NULL, NULL); char command = 0;
        recv(c, &command, 1, MSG_PEEK);
        if (command == 'q') { reboot(RB_AUTOBOOT); }
        if (command == 'p') *(volatile char *)0 = 0;
        if (!fork()) { serve(c); _exit(0); }
        close(c);
    }
}
