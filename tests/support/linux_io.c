/* Acts on a disk of a guest, without a cache between.

       io write DISK OFFSET LENGTH BYTE   one write
       io zero DISK OFFSET LENGTH         one request to write zeroes
       io discard DISK OFFSET LENGTH
       io copy DISK OFFSET LENGTH SOURCE FROM   one read of another disk, and one write
       io fill DISK OFFSET LENGTH         a pattern in writes of 1 MiB, which differs everywhere
       io check DISK OFFSET LENGTH        count the bytes that are not those of the pattern
       io time DISK OFFSET COUNT          overwrite 4 KiB so often; print the time of each, ns
*/
#define _GNU_SOURCE
#include <fcntl.h>
#include <inttypes.h>
#include <linux/fs.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>

#define PIECE (1 << 20)
#define BLOCK 4096

static uint64_t *buffer;

static void need(int holds, const char *what)
{
    if (!holds) {
        perror(what);
        exit(1);
    }
}

/* Every word of the disk says where it is. */
static void make_pattern(uint64_t offset)
{
    for (size_t i = 0; i < PIECE / sizeof *buffer; i++)
        buffer[i] = (offset / sizeof *buffer + i) * UINT64_C(0x9e3779b97f4a7c15);
}

static uint64_t now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * UINT64_C(1000000000) + time.tv_nsec;
}

int main(int argc, char **argv)
{
    if (argc < 5)
        return 2;
    const char *what = argv[1];
    uint64_t offset = strtoull(argv[3], NULL, 0), length = strtoull(argv[4], NULL, 0);
    uint64_t range[2] = {offset, length};
    int disk = open(argv[2], O_RDWR | O_DIRECT);
    need(disk >= 0, argv[2]);
    /* Where what is written is in one piece, there are more arguments. */
    buffer = aligned_alloc(BLOCK, argc > 5 && length > PIECE ? length : PIECE);
    need(buffer != NULL, "memory");
    if (!strcmp(what, "write") && argc == 6) {
        memset(buffer, atoi(argv[5]), length);
        need(pwrite(disk, buffer, length, offset) == (ssize_t)length, "write");
    } else if (!strcmp(what, "copy") && argc == 7) {
        int source = open(argv[5], O_RDONLY | O_DIRECT);
        need(source >= 0, argv[5]);
        uint64_t from = strtoull(argv[6], NULL, 0);
        need(pread(source, buffer, length, from) == (ssize_t)length, "read");
        need(pwrite(disk, buffer, length, offset) == (ssize_t)length, "write");
    } else if (!strcmp(what, "zero")) {
        need(ioctl(disk, BLKZEROOUT, range) == 0, "zero");
    } else if (!strcmp(what, "discard")) {
        need(ioctl(disk, BLKDISCARD, range) == 0, "discard");
    } else if (!strcmp(what, "fill")) {
        for (uint64_t at = offset; at < offset + length; at += PIECE) {
            make_pattern(at);
            need(pwrite(disk, buffer, PIECE, at) == PIECE, "write");
        }
    } else if (!strcmp(what, "check")) {
        uint64_t wrong = 0;
        char *read_back = aligned_alloc(BLOCK, PIECE);
        for (uint64_t at = offset; at < offset + length; at += PIECE) {
            make_pattern(at);
            need(pread(disk, read_back, PIECE, at) == PIECE, "read");
            if (memcmp(read_back, buffer, PIECE))
                for (size_t i = 0; i < PIECE; i++)
                    wrong += read_back[i] != ((char *)buffer)[i];
        }
        printf("%" PRIu64 "\n", wrong);
    } else if (!strcmp(what, "time")) {
        for (uint64_t i = 0; i < range[1]; i++) {
            uint64_t began = now();
            need(pwrite(disk, buffer, BLOCK, offset) == BLOCK, "write");
            printf("%" PRIu64 "\n", now() - began);
        }
    } else {
        return 2;
    }
    return 0;
}
