/* A container to measure proxies before: plain HTTP/1.1 and WebSocket, one thread, epoll, nothing but what bench/ asks.
 *
 *   upstream PORT
 *
 * GET, HEAD         200 with 200 bytes of JSON, kept alive
 * POST              takes the body (a length or chunked), then 200 with 200 bytes of JSON, or with `size` bytes of
 *                   audio/mpeg where the query has size=N
 * Upgrade           101, then every data frame comes back with the same payload; a Close is answered, and ends it
 *
 * It is the same for every proxy of a run and shares no code with any of them. It trusts its peer: no client may reach it.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <openssl/evp.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

enum { ROOM = 1 << 17, EVENTS = 256, HEAD_MAX = 16384 };

enum state { HEAD, BODY, CHUNKED, ANSWER, FRAMES };

struct conn {
    int fd;
    enum state state;
    bool reading, closing, chunk_end;
    size_t in, at; /* bytes in `input`, and how many of them are dealt with */
    size_t out, sent;
    uint64_t left;   /* of the body, of a chunk, of a frame's payload */
    uint64_t answer; /* bytes of a large answer still to be put out */
    uint32_t mask;
    unsigned phase; /* of the mask */
    bool head, final_chunk;
    uint64_t wanted; /* size=N */
    char input[ROOM], output[ROOM + 64];
};

static int epoll_fd;
static char filler[65536];

static void watch(struct conn *c, int op)
{
    struct epoll_event event = {
        .events = (c->reading ? EPOLLIN : 0) | (c->sent < c->out || c->answer ? EPOLLOUT : 0), .data.ptr = c};
    epoll_ctl(epoll_fd, op, c->fd, &event);
}

static void end(struct conn *c)
{
    close(c->fd);
    free(c);
}

static const char *header(const char *head, const char *name, size_t *length)
{
    size_t n = strlen(name);
    for (const char *line = strstr(head, "\r\n"); line != NULL && line[2] != '\r'; line = strstr(line + 2, "\r\n"))
        if (strncasecmp(line + 2, name, n) == 0 && line[2 + n] == ':') {
            const char *value = line + 3 + n;
            while (*value == ' ')
                value++;
            *length = (size_t)(strstr(value, "\r\n") - value);
            return value;
        }
    return NULL;
}

static void put(struct conn *c, const void *data, size_t size)
{
    memcpy(c->output + c->out, data, size);
    c->out += size;
}

static void answer(struct conn *c)
{
    char body[200], head[256];
    if (c->wanted) {
        int n = snprintf(head, sizeof head,
            "HTTP/1.1 200 OK\r\nContent-Type: audio/mpeg\r\nContent-Length: %llu\r\n"
            "dg-request-id: 00000000-0000-4000-8000-000000000000\r\n\r\n",
            (unsigned long long)c->wanted);
        put(c, head, (size_t)n);
        c->answer = c->wanted;
    } else {
        memset(body, ' ', sizeof body);
        memcpy(body, "{\"metadata\":{\"duration\":1.0}}", 29);
        int n = snprintf(head, sizeof head,
            "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %zu\r\n"
            "dg-request-id: 00000000-0000-4000-8000-000000000000\r\n\r\n",
            sizeof body);
        put(c, head, (size_t)n);
        if (!c->head)
            put(c, body, sizeof body);
    }
    c->state = HEAD;
}

static void upgrade(struct conn *c, const char *key, size_t length)
{
    unsigned char digest[20], accept[32];
    char text[128];
    unsigned size;
    memcpy(text, key, length);
    memcpy(text + length, "258EAFA5-E914-47DA-95CA-C5AB0DC85B11", 36);
    EVP_Digest(text, length + 36, digest, &size, EVP_sha1(), NULL);
    EVP_EncodeBlock(accept, digest, 20);
    char head[256];
    int n = snprintf(head, sizeof head,
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        "Sec-WebSocket-Accept: %s\r\ndg-request-id: 00000000-0000-4000-8000-000000000000\r\n\r\n",
        accept);
    put(c, head, (size_t)n);
    c->state = FRAMES;
}

/* Whether there was a whole head. */
static bool take_head(struct conn *c)
{
    char *start = c->input + c->at;
    size_t have = c->in - c->at, length;
    char *stop = memmem(start, have, "\r\n\r\n", 4);
    if (stop == NULL) {
        c->closing = c->closing || have > HEAD_MAX;
        return false;
    }
    char saved = stop[4];
    stop[4] = 0;
    const char *value, *size = memmem(start, (size_t)(strstr(start, "\r\n") - start), "size=", 5);
    c->wanted = size ? strtoull(size + 5, NULL, 10) : 0;
    c->head = strncmp(start, "HEAD ", 5) == 0;
    if ((value = header(start, "Sec-WebSocket-Key", &length)) != NULL && length < 80)
        upgrade(c, value, length);
    else if ((value = header(start, "Transfer-Encoding", &length)) != NULL) {
        c->state = CHUNKED;
        c->left = 0;
        c->chunk_end = c->final_chunk = false;
    } else if ((value = header(start, "Content-Length", &length)) != NULL && (c->left = strtoull(value, NULL, 10)) > 0)
        c->state = BODY;
    else
        answer(c);
    stop[4] = saved;
    c->at += (size_t)(stop + 4 - start);
    return true;
}

static bool take_chunk(struct conn *c)
{
    size_t have = c->in - c->at;
    if (c->left) {
        size_t part = have < c->left ? have : (size_t)c->left;
        c->at += part;
        c->left -= part;
        c->chunk_end = c->left == 0;
        return part > 0;
    }
    char *start = c->input + c->at, *stop = memmem(start, have, "\r\n", 2);
    if (stop == NULL)
        return false;
    c->at += (size_t)(stop + 2 - start);
    if (c->chunk_end) { /* the line end behind a chunk's bytes */
        c->chunk_end = false;
        return true;
    }
    if (c->final_chunk) {
        if (stop == start)
            answer(c);
        return true;
    }
    c->left = strtoull(start, NULL, 16);
    c->final_chunk = c->left == 0;
    return true;
}

/* Echoes what is there of a frame, unmasked; a head goes out before its payload has come. */
static bool take_frame(struct conn *c)
{
    unsigned char *p = (unsigned char *)c->input + c->at;
    size_t have = c->in - c->at, room = ROOM - c->out;
    if (c->left) {
        size_t part = have < c->left ? have : (size_t)c->left;
        if (part > room)
            part = room;
        unsigned char mask[4];
        memcpy(mask, &c->mask, 4);
        unsigned char *to = (unsigned char *)c->output + c->out;
        for (size_t i = 0; i < part; i++)
            to[i] = p[i] ^ mask[(c->phase + i) & 3];
        c->phase = (c->phase + (unsigned)part) & 3;
        c->out += part;
        c->at += part;
        c->left -= part;
        return part > 0;
    }
    if (have < 2 || room < 10)
        return false;
    size_t head = 2;
    uint64_t length = p[1] & 127;
    if (length == 126)
        head = 4;
    else if (length == 127)
        head = 10;
    if (have < head + 4)
        return false;
    if (length >= 126) {
        length = 0;
        for (size_t i = 2; i < head; i++)
            length = length << 8 | p[i];
    }
    memcpy(&c->mask, p + head, 4);
    c->phase = 0;
    unsigned char out[10];
    memcpy(out, p, head);
    out[1] &= 127;
    put(c, out, head);
    c->closing = c->closing || (p[0] & 15) == 8;
    c->at += head + 4;
    c->left = length;
    return true;
}

static bool flush(struct conn *c)
{
    while (c->sent < c->out || c->answer) {
        if (c->sent == c->out) {
            size_t part = c->answer < sizeof filler ? (size_t)c->answer : sizeof filler;
            ssize_t n = send(c->fd, filler, part, MSG_NOSIGNAL);
            if (n < 0)
                return errno == EAGAIN;
            c->answer -= (uint64_t)n;
            continue;
        }
        ssize_t n = send(c->fd, c->output + c->sent, c->out - c->sent, MSG_NOSIGNAL);
        if (n < 0)
            return errno == EAGAIN;
        c->sent += (size_t)n;
    }
    c->sent = c->out = 0;
    return true;
}

static bool turn(struct conn *c, uint32_t events)
{
    if (events & (EPOLLERR | EPOLLHUP))
        return false;
    if (events & EPOLLIN) {
        ssize_t n = recv(c->fd, c->input + c->in, ROOM - c->in, 0);
        if (n == 0 || (n < 0 && errno != EAGAIN))
            return false;
        c->in += n > 0 ? (size_t)n : 0;
    }
    bool more = true;
    while (more) {
        more = false;
        while (c->at < c->in && c->out < ROOM - 1024 && !c->answer) {
            bool moved = false;
            switch (c->state) {
            case HEAD:
                moved = take_head(c);
                break;
            case BODY: {
                size_t have = c->in - c->at, part = have < c->left ? have : (size_t)c->left;
                c->at += part;
                if ((c->left -= part) == 0)
                    answer(c);
                moved = true;
                break;
            }
            case CHUNKED:
                moved = take_chunk(c);
                break;
            case FRAMES:
                moved = take_frame(c);
                break;
            default:
                return false;
            }
            if (!moved)
                break;
        }
        bool full = c->out >= ROOM - 1024;
        if (!flush(c))
            return false;
        more = full && c->out == 0;
    }
    if (c->at == c->in)
        c->at = c->in = 0;
    else if (c->at > ROOM / 2) {
        memmove(c->input, c->input + c->at, c->in - c->at);
        c->in -= c->at;
        c->at = 0;
    }
    if (c->closing && c->state == FRAMES && !c->left && c->out == 0)
        return false;
    c->reading = c->in < ROOM && c->out == 0 && !c->answer;
    watch(c, EPOLL_CTL_MOD);
    return true;
}

int main(int argc, char **argv)
{
    if (argc != 2) {
        fprintf(stderr, "usage: upstream PORT\n");
        return 2;
    }
    struct rlimit limit;
    getrlimit(RLIMIT_NOFILE, &limit);
    limit.rlim_cur = limit.rlim_max;
    setrlimit(RLIMIT_NOFILE, &limit);
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0), yes = 1;
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
    struct sockaddr_in address = {
        .sin_family = AF_INET, .sin_port = htons((uint16_t)atoi(argv[1])), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    if (bind(listener, (struct sockaddr *)&address, sizeof address) < 0 || listen(listener, 4096) < 0) {
        perror("upstream");
        return 1;
    }
    epoll_fd = epoll_create1(0);
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = NULL}, events[EVENTS];
    epoll_ctl(epoll_fd, EPOLL_CTL_ADD, listener, &event);
    for (;;) {
        int n = epoll_wait(epoll_fd, events, EVENTS, -1);
        for (int i = 0; i < n; i++) {
            struct conn *c = events[i].data.ptr;
            if (c != NULL) {
                if (!turn(c, events[i].events))
                    end(c);
                continue;
            }
            int fd;
            while ((fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK)) >= 0) {
                c = malloc(sizeof *c);
                memset(c, 0, offsetof(struct conn, input));
                c->fd = fd;
                c->reading = true;
                setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
                watch(c, EPOLL_CTL_ADD);
            }
        }
    }
}
