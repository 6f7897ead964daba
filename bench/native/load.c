/* The load of bench/: one thread, epoll, OpenSSL; the same bytes to whatever listens at the given port.
 *
 *   load MODE port=P [host=127.0.0.1] [name=localhost] [authority=localhost] [tls=1] [any_tls=0] [ca=FILE | verify=1]
 *        [target=/v1/...] [n=500] [bytes=3200] [interval=0.1] [seconds=10] [inflight=4] [resume=0] [text=0] [wav=0]
 *
 * `host` is an address, `name` what the certificate must say, `authority` what Host says. Every proxy of a run gets TLS
 * 1.3 and one cipher; with any_tls=1 it is what the server likes. The key is in $DGPROXY_BENCH_KEY: argv is everybody's.
 *
 * It says "open N" on a line once its connections stand (and then why others do not), waits for a line on stdin, runs, and
 * says its figures as one JSON object on a line. Modes:
 *
 * streams    n WebSockets, a message each every `interval` s, echoed. Open loop: message m is due at start + m * interval / n
 *            whatever the proxy does, and its latency counts from then, not from when it was sent (no coordinated omission)
 * saturate   n WebSockets, `inflight` messages each on their way; the next is sent when one has come back
 * requests   n kept-alive connections, a GET each, the next when it was answered; text=N: a POST of N characters to be
 *            spoken. A server that closes after an answer and has said so is dialled again, in that request's time
 * handshake  n at once: connect, TLS (resumed with resume=1), a GET with Connection: close, to the end of the stream
 * upload     a POST of `bytes` bytes on one connection, until it is answered (wav=1: of a WAV file); download: a POST
 *            answered with so many
 * idle       n WebSockets that say nothing, for `seconds` from a line on stdin, or until stdin ends
 *
 * Every byte that comes back in streams and saturate is compared. Exit status 1: something was lost, unequal or refused.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <openssl/err.h>
#include <openssl/ssl.h>
#include <openssl/x509v3.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

enum { EVENTS = 512, RING = 1024, ROOM = 65536 };
enum phase { CONNECTING, SHAKING, ASKING, OPEN, GONE };
enum mode { STREAMS, SATURATE, REQUESTS, HANDSHAKE, UPLOAD, DOWNLOAD, IDLE };
static const char *MODES[] = {"streams", "saturate", "requests", "handshake", "upload", "download", "idle"};

enum framing { LENGTH, CHUNKED, UNTIL_END };
enum part { SIZE, SIZE_REST, DATA, DATA_END, TRAILER, TRAILER_REST };

struct conn {
    int fd;
    SSL *ssl;
    enum phase phase;
    uint32_t id;
    uint64_t said, heard;             /* messages begun, messages back */
    uint64_t queued;                  /* messages due that are not begun yet */
    double due[RING];                 /* of those on their way, by number */
    const char *out;                  /* what is being sent, */
    size_t out_left;                  /* and how much of it is left */
    uint64_t body_left;               /* of an upload */
    char *frame;                      /* this connection's message, masked */
    unsigned char head[14];           /* of the frame that comes in */
    size_t head_size;
    uint64_t payload, payload_at;
    char answer[4096];                /* the head of an HTTP answer */
    size_t answer_size;
    uint64_t answer_left;             /* of the body, or of the chunk */
    enum framing framing;
    enum part part;                   /* of a chunked body */
    bool in_body, over, closes, refusal;
    double began;
};

static enum mode mode;
static int port, epoll_fd;
static const char *key = "", *host = "127.0.0.1", *name = "localhost", *authority = "localhost", *ca = "",
                  *target = "/v1/listen?model=nova-3&encoding=linear16&sample_rate=16000";
static bool tls = true, any_tls = false, verify = false, resume = false, wav = false, running = false;
static long text;
static char why[160]; /* the first thing that went wrong */
static struct sockaddr_storage address;
static socklen_t address_size;
static long n = 500, inflight = 4;
static uint64_t bytes = 3200;
static double interval = 0.1, seconds = 10, started, stop_at;
static SSL_CTX *context;
static SSL_SESSION *session;
static char request[32768], *plain, *first; /* what a body begins with */
static size_t request_size, frame_head;
static struct conn *conns;
static uint64_t unequal, lost, refused, done, done_bytes, opened, resumed;
static double *latencies;
static size_t latency_count, latency_room;
static double *lateness, *firsts, *openings; /* `firsts`: until an answer began; `openings`: until a WebSocket stood */
static size_t lateness_count, lateness_room, first_count, first_room, opening_count, opening_room;

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void note(double **list, size_t *count, size_t *room, double value)
{
    if (*count == *room) {
        *room = *room ? 2 * *room : 1 << 16;
        *list = realloc(*list, *room * sizeof **list);
    }
    (*list)[(*count)++] = value;
}

/* Keeps the first reason, as it may stand in JSON. */
static void because(const char *what, const char *more, size_t size)
{
    if (*why)
        return;
    snprintf(why, sizeof why, "%s%.*s", what, (int)size, more);
    for (char *at = why; *at; at++)
        if (*at < ' ' || *at > '~' || *at == '"' || *at == '\\')
            *at = '?';
}

/* --- bytes ------------------------------------------------------------------------------------------------------- */

/* Bytes read, 0 at the end, -1 would block, -2 broken. */
static long receive(struct conn *c, void *buffer, size_t size)
{
    if (c->ssl == NULL) {
        ssize_t got = recv(c->fd, buffer, size, 0);
        return got >= 0 ? got : errno == EAGAIN ? -1 : -2;
    }
    int got = SSL_read(c->ssl, buffer, (int)size);
    if (got > 0)
        return got;
    int error = SSL_get_error(c->ssl, got);
    ERR_clear_error();
    return error == SSL_ERROR_WANT_READ || error == SSL_ERROR_WANT_WRITE ? -1 : error == SSL_ERROR_ZERO_RETURN ? 0 : -2;
}

static long give(struct conn *c, const void *data, size_t size)
{
    if (c->ssl == NULL) {
        ssize_t sent = send(c->fd, data, size, MSG_NOSIGNAL);
        return sent >= 0 ? sent : errno == EAGAIN ? -1 : -2;
    }
    int sent = SSL_write(c->ssl, data, (int)size);
    if (sent > 0)
        return sent;
    int error = SSL_get_error(c->ssl, sent);
    ERR_clear_error();
    return error == SSL_ERROR_WANT_WRITE || error == SSL_ERROR_WANT_READ ? -1 : -2;
}

static void drop(struct conn *c, uint64_t *count)
{
    if (c->phase == GONE)
        return;
    if (count != NULL)
        (*count)++;
    c->phase = GONE;
    if (c->ssl != NULL) {
        if (count == NULL) /* else OpenSSL takes its session for broken, and does not resume it */
            SSL_set_shutdown(c->ssl, SSL_SENT_SHUTDOWN | SSL_RECEIVED_SHUTDOWN);
        SSL_free(c->ssl);
    }
    c->ssl = NULL;
    close(c->fd);
}

static void dial(struct conn *c)
{
    int yes = 1;
    c->fd = socket(address.ss_family, SOCK_STREAM | SOCK_NONBLOCK, 0);
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
    c->phase = CONNECTING;
    c->began = now();
    c->in_body = c->over = c->closes = c->refusal = false;
    c->answer_size = c->head_size = 0;
    c->payload = c->payload_at = 0;
    c->out = request;
    c->out_left = request_size;
    c->body_left = mode == UPLOAD ? bytes : 0;
    if (connect(c->fd, (struct sockaddr *)&address, address_size) < 0 && errno != EINPROGRESS) {
        because("", strerror(errno), 99);
        drop(c, &lost);
        return;
    }
    struct epoll_event event = {.events = EPOLLIN | EPOLLOUT | EPOLLET, .data.ptr = c};
    epoll_ctl(epoll_fd, EPOLL_CTL_ADD, c->fd, &event);
}

/* --- messages ---------------------------------------------------------------------------------------------------- */

static void begin_message(struct conn *c)
{
    uint32_t head[2] = {c->id, (uint32_t)c->said};
    unsigned char *mask = (unsigned char *)c->frame + frame_head - 4, *to = (unsigned char *)c->frame + frame_head;
    const unsigned char *from = (const unsigned char *)head;
    for (size_t i = 0; i < sizeof head && i < bytes; i++)
        to[i] = from[i] ^ mask[i & 3];
    c->said++;
    c->queued--;
    c->out = c->frame;
    c->out_left = frame_head + bytes;
    if (mode == STREAMS)
        note(&lateness, &lateness_count, &lateness_room, now() - c->due[(c->said - 1) % RING]);
}

static bool send_all(struct conn *c)
{
    for (;;) {
        if (c->out_left == 0) {
            if (c->phase == ASKING && c->body_left) {
                c->out = c->body_left == bytes ? first : plain;
                c->out_left = c->body_left < ROOM ? (size_t)c->body_left : ROOM;
                c->body_left -= c->out_left;
            } else if (c->phase == OPEN && c->queued)
                begin_message(c);
            else
                return true;
        }
        long sent = give(c, c->out, c->out_left);
        if (sent == -1)
            return true;
        if (sent < 0)
            return false;
        c->out += sent;
        c->out_left -= (size_t)sent;
    }
}

static void came_back(struct conn *c)
{
    double at = now();
    note(&latencies, &latency_count, &latency_room, at - c->due[c->heard % RING]);
    c->heard++;
    done++;
    done_bytes += bytes;
    if (mode == SATURATE && at < stop_at) {
        c->due[(c->said + c->queued) % RING] = at;
        c->queued++;
    }
}

/* A WebSocket's bytes: unmasked data frames with our own payloads. */
static bool frames(struct conn *c, const unsigned char *data, size_t size)
{
    while (size) {
        size_t want = 2;
        if (c->head_size >= 2)
            want = (c->head[1] & 127) == 126 ? 4 : (c->head[1] & 127) == 127 ? 10 : 2;
        if (c->head_size < want || c->head_size < 2) {
            c->head[c->head_size++] = *data++;
            size--;
            want = c->head_size < 2 ? 2 : (c->head[1] & 127) == 126 ? 4 : (c->head[1] & 127) == 127 ? 10 : 2;
            if (c->head_size < want)
                continue;
            c->payload = c->head[1] & 127;
            if (c->payload >= 126) {
                c->payload = 0;
                for (size_t i = 2; i < want; i++)
                    c->payload = c->payload << 8 | c->head[i];
            }
            c->payload_at = 0;
            if (c->head[0] != 0x82 || c->payload != bytes)
                return false;
            continue;
        }
        size_t part = c->payload - c->payload_at < size ? (size_t)(c->payload - c->payload_at) : size;
        uint32_t head[2] = {c->id, (uint32_t)c->heard};
        for (size_t i = 0; i < part && c->payload_at + i < sizeof head; i++)
            if (data[i] != ((unsigned char *)head)[c->payload_at + i])
                unequal++;
        size_t skip = c->payload_at < sizeof head ? sizeof head - (size_t)c->payload_at : 0;
        if (skip < part && memcmp(data + skip, plain + c->payload_at + skip, part - skip) != 0)
            unequal++;
        c->payload_at += part;
        data += part;
        size -= part;
        if (c->payload_at == c->payload) {
            c->head_size = 0;
            came_back(c);
        }
    }
    return true;
}

static bool answered(struct conn *c);

/* Bytes of a chunked body. 1: it is over, 0: not yet, -1: not understood. */
static int chunks(struct conn *c, const char *data, size_t size)
{
    for (; size; data++, size--) {
        switch (c->part) {
        case SIZE: /* digits, then perhaps an extension, to the end of the line */
            if (*data == '\n') {
                c->part = c->answer_left ? DATA : TRAILER;
            } else if (isxdigit((unsigned char)*data)) {
                if (c->answer_left >> 56)
                    return -1;
                c->answer_left = c->answer_left << 4 | (uint64_t)(isdigit((unsigned char)*data) ? *data - '0' : (*data | 32) - 'a' + 10);
            } else if (*data == ';' || *data == '\r' || *data == ' ')
                c->part = SIZE_REST;
            else
                return -1;
            break;
        case SIZE_REST:
            if (*data == '\n')
                c->part = c->answer_left ? DATA : TRAILER;
            break;
        case DATA: {
            size_t part = c->answer_left < size ? (size_t)c->answer_left : size;
            c->answer_left -= part;
            done_bytes += part;
            data += part - 1;
            size -= part - 1;
            if (c->answer_left == 0)
                c->part = DATA_END;
            break;
        }
        case DATA_END:
            if (*data == '\n')
                c->part = SIZE;
            else if (*data != '\r')
                return -1;
            break;
        case TRAILER: /* the beginning of a line: an empty one ends it all */
            if (*data == '\n')
                return 1;
            if (*data != '\r')
                c->part = TRAILER_REST;
            break;
        case TRAILER_REST:
            if (*data == '\n')
                c->part = TRAILER;
            break;
        }
    }
    return 0;
}

/* A field's value in an answer's head; NULL if it is not there. */
static const char *field(const struct conn *c, const char *stop, const char *line)
{
    const char *found = strcasestr(c->answer, line);
    return found == NULL || found > stop ? NULL : found + strlen(line) + strspn(found + strlen(line), " \t");
}

/* An HTTP answer's bytes; what follows a 101 is frames. False: refused, or not understood. */
static bool http(struct conn *c, const char *data, size_t size)
{
    if (!c->in_body) {
        size_t room = sizeof c->answer - 1 - c->answer_size, part = size < room ? size : room;
        memcpy(c->answer + c->answer_size, data, part);
        size_t before = c->answer_size;
        c->answer_size += part;
        c->answer[c->answer_size] = 0;
        char *stop = strstr(c->answer, "\r\n\r\n");
        if (stop == NULL) {
            if (room <= 1)
                because("an answer whose head does not end", "", 0);
            return room > 1;
        }
        size_t used = (size_t)(stop + 4 - c->answer) - before;
        data += used;
        size -= used;
        int status = atoi(c->answer + 9);
        if (status == 101) {
            c->phase = OPEN;
            opened++;
            note(&openings, &opening_count, &opening_room, now() - c->began);
            return size == 0 || frames(c, (const unsigned char *)data, size);
        }
        if (status != 200 || mode == STREAMS || mode == SATURATE || mode == IDLE) {
            because("", c->answer, strcspn(c->answer, "\r"));
            c->refusal = true;
            return false;
        }
        const char *length = field(c, stop, "\r\nContent-Length:"), *coding = field(c, stop, "\r\nTransfer-Encoding:");
        const char *connection = field(c, stop, "\r\nConnection:");
        c->closes = connection != NULL && strncasecmp(connection, "close", 5) == 0;
        c->framing = coding != NULL && strncasecmp(coding, "chunked", 7) == 0 ? CHUNKED : length != NULL ? LENGTH : UNTIL_END;
        c->part = SIZE;
        c->answer_left = c->framing == LENGTH ? strtoull(length, NULL, 10) : 0;
        c->in_body = true;
        if (running)
            note(&firsts, &first_count, &first_room, now() - c->began);
    }
    if (c->framing == CHUNKED) {
        int over = chunks(c, data, size);
        if (over < 0)
            because("a chunked answer that is none", "", 0);
        return over == 0 || (over > 0 && answered(c));
    }
    done_bytes += size;
    if (c->framing == UNTIL_END)
        return true;
    c->answer_left -= size < c->answer_left ? size : c->answer_left;
    return c->answer_left != 0 || answered(c);
}

static void ask_again(struct conn *c)
{
    c->answer_size = 0;
    c->in_body = c->over = false;
    c->out = request;
    c->out_left = request_size;
    c->began = now();
}

/* False: the connection is over too, `handle` closes it. */
static bool answered(struct conn *c)
{
    double at = now();
    c->over = true;
    if (running) {
        note(&latencies, &latency_count, &latency_room, at - c->began);
        done++;
    } else {
        opened++; /* the first answer: the connection stands */
        c->phase = OPEN;
    }
    if (mode == HANDSHAKE || c->closes || c->framing == UNTIL_END)
        return false;
    if (running && mode == REQUESTS && at < stop_at)
        ask_again(c);
    if (running && (mode == UPLOAD || mode == DOWNLOAD))
        stop_at = at;
    return true;
}

/* --- connections ------------------------------------------------------------------------------------------------- */

static bool turn(struct conn *c)
{
    if (c->phase == CONNECTING) {
        int error = 0;
        socklen_t size = sizeof error;
        getsockopt(c->fd, SOL_SOCKET, SO_ERROR, &error, &size);
        if (error) {
            because("", strerror(error), 99);
            return false;
        }
        struct sockaddr_storage peer;
        size = sizeof peer;
        if (getpeername(c->fd, (struct sockaddr *)&peer, &size) < 0)
            return true;
        c->phase = tls ? SHAKING : ASKING;
        if (tls) {
            c->ssl = SSL_new(context);
            SSL_set_fd(c->ssl, c->fd);
            unsigned char number[16];
            if (inet_pton(AF_INET, name, number) == 1 || inet_pton(AF_INET6, name, number) == 1)
                X509_VERIFY_PARAM_set1_ip_asc(SSL_get0_param(c->ssl), name); /* RFC 6066 3: no number in SNI */
            else {
                SSL_set_tlsext_host_name(c->ssl, name);
                SSL_set1_host(c->ssl, name);
            }
            if (resume && session != NULL)
                SSL_set_session(c->ssl, session);
        }
    }
    if (c->phase == SHAKING) {
        int result = SSL_connect(c->ssl);
        if (result != 1) {
            int error = SSL_get_error(c->ssl, result);
            long found = SSL_get_verify_result(c->ssl);
            const char *reason = ERR_reason_error_string(ERR_peek_error());
            if (error == SSL_ERROR_WANT_READ || error == SSL_ERROR_WANT_WRITE) {
                ERR_clear_error();
                return true;
            }
            if (verify && found != X509_V_OK)
                because("certificate: ", X509_verify_cert_error_string(found), 99);
            else
                because("TLS: ", reason != NULL ? reason : "the connection ended", 99);
            ERR_clear_error();
            return false;
        }
        resumed += (uint64_t)SSL_session_reused(c->ssl);
        c->phase = ASKING;
    }
    if (!send_all(c))
        return false;
    static unsigned char buffer[ROOM];
    for (;;) {
        long got = receive(c, buffer, sizeof buffer);
        if (got == -1)
            return send_all(c);
        if (got == 0 && c->in_body && c->framing == UNTIL_END && !c->over)
            return answered(c);
        if (got <= 0)
            return false;
        bool websocket = mode == STREAMS || mode == SATURATE || mode == IDLE;
        if (websocket && c->phase == OPEN ? !frames(c, buffer, (size_t)got) : !http(c, (char *)buffer, (size_t)got))
            return false;
        if (!send_all(c))
            return false;
    }
}

static int keep_session(SSL *ssl, SSL_SESSION *given)
{
    (void)ssl;
    if (session != NULL)
        SSL_SESSION_free(session);
    session = given;
    return 1;
}

static void handle(struct conn *c)
{
    if (c->phase == GONE || turn(c))
        return;
    if (!c->over)
        because("the connection ended", "", 0);
    bool well = c->over && (mode == HANDSHAKE || c->closes || c->framing == UNTIL_END);
    drop(c, well ? NULL : running && c->phase >= ASKING && !c->refusal ? &lost : &refused);
    if (well && running && now() < stop_at && (mode == HANDSHAKE || mode == REQUESTS)) /* who refuses is not pressed */
        dial(c);
}

static int compare(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

static void say(const char *name, double *list, size_t count)
{
    static const double at[] = {0, 0.01, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.925, 0.95,
        0.97, 0.98, 0.99, 0.995, 0.999, 0.9995, 0.9999, 1};
    qsort(list, count, sizeof *list, compare);
    printf(", \"%s_us\": [", name);
    for (size_t i = 0; count && i < sizeof at / sizeof *at; i++) {
        size_t place = (size_t)(at[i] * (double)(count - 1) + 0.5);
        printf("%s[%g, %.1f]", i ? ", " : "", at[i], 1e6 * list[place]);
    }
    printf("]");
}

static void options(int argc, char **argv)
{
    size_t m = 0;
    while (argc > 1 && m < sizeof MODES / sizeof *MODES && strcmp(MODES[m], argv[1]) != 0)
        m++;
    if (argc < 3 || m == sizeof MODES / sizeof *MODES) {
        fprintf(stderr, "usage: load MODE port=P ... (see the head of load.c)\n");
        exit(2);
    }
    mode = (enum mode)m;
    for (int i = 2; i < argc; i++) {
        char *value = strchr(argv[i], '=');
        if (value == NULL)
            exit(2);
        *value++ = 0;
        if (!strcmp(argv[i], "port"))
            port = atoi(value);
        else if (!strcmp(argv[i], "tls"))
            tls = atoi(value);
        else if (!strcmp(argv[i], "host"))
            host = value;
        else if (!strcmp(argv[i], "name"))
            name = value;
        else if (!strcmp(argv[i], "authority"))
            authority = value;
        else if (!strcmp(argv[i], "ca"))
            ca = value;
        else if (!strcmp(argv[i], "verify"))
            verify = atoi(value);
        else if (!strcmp(argv[i], "any_tls"))
            any_tls = atoi(value);
        else if (!strcmp(argv[i], "text"))
            text = atol(value);
        else if (!strcmp(argv[i], "wav"))
            wav = atoi(value);
        else if (!strcmp(argv[i], "target"))
            target = value;
        else if (!strcmp(argv[i], "n"))
            n = atol(value);
        else if (!strcmp(argv[i], "bytes"))
            bytes = strtoull(value, NULL, 10);
        else if (!strcmp(argv[i], "interval"))
            interval = atof(value);
        else if (!strcmp(argv[i], "seconds"))
            seconds = atof(value);
        else if (!strcmp(argv[i], "inflight"))
            inflight = atol(value);
        else if (!strcmp(argv[i], "resume"))
            resume = atoi(value);
        else {
            fprintf(stderr, "load: unknown option %s\n", argv[i]);
            exit(2);
        }
    }
    if (getenv("DGPROXY_BENCH_KEY") != NULL)
        key = getenv("DGPROXY_BENCH_KEY");
    struct sockaddr_in *four = (struct sockaddr_in *)&address;
    struct sockaddr_in6 *six = (struct sockaddr_in6 *)&address;
    if (inet_pton(AF_INET, host, &four->sin_addr) == 1) {
        four->sin_family = AF_INET;
        four->sin_port = htons((uint16_t)port);
        address_size = sizeof *four;
    } else if (inet_pton(AF_INET6, host, &six->sin6_addr) == 1) {
        six->sin6_family = AF_INET6;
        six->sin6_port = htons((uint16_t)port);
        address_size = sizeof *six;
    } else {
        fprintf(stderr, "load: %s is no address\n", host);
        exit(2);
    }
    if (inflight > RING / 2 || text < 0 || text > 16000)
        exit(2);
}

/* {"text":"..."} of so many characters to be said. */
static size_t to_say(char *to, long characters)
{
    static const char words[] = "The quick brown fox jumps over the lazy dog. ";
    char *at = stpcpy(to, "{\"text\":\"");
    for (long i = 0; i < characters; i++)
        *at++ = words[(size_t)i % (sizeof words - 1)];
    return (size_t)(stpcpy(at, "\"}") - to);
}

/* A WAV file's head, of 16 kHz, one channel, 16 bits, before so many bytes in all. */
static void wav_head(char *to, uint64_t size)
{
    static const unsigned char head[44] = "RIFF\0\0\0\0WAVEfmt \x10\0\0\0\1\0\1\0\x80\x3e\0\0\0\x7d\0\0\2\0\x10\0data";
    memcpy(to, head, sizeof head);
    for (int i = 0; i < 4; i++) {
        to[4 + i] = (char)((size - 8) >> (8 * i));
        to[40 + i] = (char)((size - 44) >> (8 * i));
    }
}

static void prepare(void)
{
    char authorization[600] = "";
    if (*key)
        snprintf(authorization, sizeof authorization, "Authorization: Token %s\r\n", key);
    bool websocket = mode == STREAMS || mode == SATURATE || mode == IDLE;
    const char *rest = websocket
        ? "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
          "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
        : mode == HANDSHAKE     ? "Connection: close\r\n"
        : text                  ? "Content-Type: application/json\r\n"
        : mode == UPLOAD && wav ? "Content-Type: audio/wav\r\n"
                                : "";
    static char body[16384];
    size_t body_size = mode == DOWNLOAD ? (size_t)(stpcpy(body, "{}") - body) : text ? to_say(body, text) : 0;
    bool post = mode == UPLOAD || body_size;
    char length[64] = "";
    if (post)
        snprintf(length, sizeof length, "Content-Length: %llu\r\n", (unsigned long long)(mode == UPLOAD ? bytes : body_size));
    char full[2048];
    snprintf(full, sizeof full, "%s", target);
    if (mode == DOWNLOAD)
        snprintf(full, sizeof full, "%s%csize=%llu", target, strchr(target, '?') ? '&' : '?', (unsigned long long)bytes);
    request_size = (size_t)snprintf(request, sizeof request, "%s %s HTTP/1.1\r\nHost: %s\r\n%s%s%s\r\n%s",
        post ? "POST" : "GET", full, authority, authorization, rest, length, body);
    plain = malloc(bytes > ROOM ? bytes : ROOM);
    uint32_t random = 3200;
    for (uint64_t i = 0; i < (bytes > ROOM ? bytes : ROOM); i++) {
        random = random * 1664525 + 1013904223;
        plain[i] = (char)(random >> 24);
    }
    first = plain;
    if (wav && bytes > 44) {
        first = malloc(ROOM);
        memcpy(first, plain, ROOM);
        wav_head(first, bytes);
    }
    if (!websocket)
        return;
    unsigned char head[14] = {0x82};
    if (bytes < 126) {
        head[1] = 0x80 | (unsigned char)bytes;
        frame_head = 6;
    } else if (bytes < 65536) {
        head[1] = 0x80 | 126;
        head[2] = (unsigned char)(bytes >> 8);
        head[3] = (unsigned char)bytes;
        frame_head = 8;
    } else {
        head[1] = 0x80 | 127;
        for (int i = 0; i < 8; i++)
            head[2 + i] = (unsigned char)(bytes >> (56 - 8 * i));
        frame_head = 14;
    }
    static const unsigned char mask[4] = {0x12, 0x34, 0x56, 0x78};
    memcpy(head + frame_head - 4, mask, 4);
    for (long i = 0; i < n; i++) {
        conns[i].frame = malloc(frame_head + bytes);
        memcpy(conns[i].frame, head, frame_head);
        for (uint64_t j = 0; j < bytes; j++)
            conns[i].frame[frame_head + j] = (char)(plain[j] ^ (char)mask[j & 3]);
    }
}

static void spin(int timer, double until)
{
    struct epoll_event events[EVENTS];
    for (;;) {
        double left = until - now();
        if (left <= 0)
            return;
        struct itimerspec when = {.it_value = {(time_t)left, (long)(1e9 * (left - (double)(time_t)left)) + 1}};
        timerfd_settime(timer, 0, &when, NULL);
        int count = epoll_wait(epoll_fd, events, EVENTS, -1);
        for (int i = 0; i < count; i++)
            if (events[i].data.ptr != NULL)
                handle(events[i].data.ptr);
            else {
                uint64_t expired;
                if (read(timer, &expired, sizeof expired) < 0 && errno != EAGAIN)
                    exit(1);
            }
        if (count && events[0].data.ptr == NULL && count == 1)
            return;
        if (!running && opened + refused + lost >= (uint64_t)n)
            return;
        if (running && (mode == UPLOAD || mode == DOWNLOAD) && done)
            return;
    }
}

int main(int argc, char **argv)
{
    options(argc, argv);
    struct rlimit limit;
    getrlimit(RLIMIT_NOFILE, &limit);
    limit.rlim_cur = limit.rlim_max;
    setrlimit(RLIMIT_NOFILE, &limit);
    if (mode == UPLOAD || mode == DOWNLOAD)
        n = 1;
    conns = calloc((size_t)n, sizeof *conns);
    prepare();
    if (tls) {
        context = SSL_CTX_new(TLS_client_method());
        SSL_CTX_set_min_proto_version(context, any_tls ? TLS1_2_VERSION : TLS1_3_VERSION);
        if (!any_tls)
            SSL_CTX_set_ciphersuites(context, "TLS_AES_256_GCM_SHA384"); /* the same for every proxy */
        if (*ca && SSL_CTX_load_verify_locations(context, ca, NULL) != 1) {
            fprintf(stderr, "load: %s holds no certificates\n", ca);
            exit(2);
        }
        if (verify && !*ca)
            SSL_CTX_set_default_verify_paths(context);
        if (verify || *ca)
            SSL_CTX_set_verify(context, SSL_VERIFY_PEER, NULL);
        SSL_CTX_set_mode(context, SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER | SSL_MODE_RELEASE_BUFFERS);
        SSL_CTX_set_read_ahead(context, 1);
        SSL_CTX_set_options(context, SSL_OP_IGNORE_UNEXPECTED_EOF);
        if (resume) {
            SSL_CTX_set_session_cache_mode(context, SSL_SESS_CACHE_CLIENT | SSL_SESS_CACHE_NO_INTERNAL);
            SSL_CTX_sess_set_new_cb(context, keep_session);
        }
    }
    epoll_fd = epoll_create1(0);
    int timer = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK);
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = NULL};
    epoll_ctl(epoll_fd, EPOLL_CTL_ADD, timer, &event);

    bool opens = mode != UPLOAD && mode != DOWNLOAD;
    for (long i = 0; i < n; i++) {
        conns[i].id = (uint32_t)i;
        conns[i].phase = GONE;
    }
    for (long i = 0; opens && i < n; i++) { /* 32 handshakes at a time */
        dial(&conns[i]);
        double patience = now() + 30;
        while ((uint64_t)i + 1 > opened + refused + lost + 31 && now() < patience)
            spin(timer, now() + 0.001);
    }
    double patience = now() + 30;
    while (opens && opened + refused + lost < (uint64_t)n && now() < patience)
        spin(timer, now() + 0.01);
    printf("open %llu %s\n", (unsigned long long)opened, why);
    fflush(stdout);
    char line[64];
    if (fgets(line, sizeof line, stdin) == NULL)
        return opened == (uint64_t)n ? 0 : 1;

    running = true;
    *why = 0;
    lost = refused = 0;
    done_bytes = 0;
    resumed = 0;
    started = now() + (mode == STREAMS ? 0.05 : 0);
    stop_at = started + seconds;
    if (mode == STREAMS) {
        double step = interval / (double)n;
        uint64_t total = (uint64_t)(seconds / step), next = 0;
        while (next < total) {
            double at = now();
            while (next < total && started + (double)next * step <= at) {
                struct conn *c = &conns[next % (uint64_t)n];
                if (c->phase == OPEN && c->said + c->queued - c->heard < RING - 1) {
                    c->due[(c->said + c->queued) % RING] = started + (double)next * step;
                    c->queued++;
                    if (!send_all(c))
                        drop(c, &lost);
                } else
                    unequal++; /* as bad: it was never sent */
                next++;
            }
            if (next < total)
                spin(timer, started + (double)next * step);
        }
        double last = now() + 5;
        while (done < total && lost == 0 && now() < last)
            spin(timer, now() + 0.01);
        if (done < total)
            lost += total - done;
    } else {
        for (long i = 0; i < n; i++) {
            struct conn *c = &conns[i];
            if (mode == SATURATE)
                for (long j = 0; j < inflight && c->phase == OPEN; j++) {
                    c->due[(c->said + c->queued) % RING] = now();
                    c->queued++;
                }
            else if (mode == REQUESTS && c->phase == OPEN)
                ask_again(c);
            else if (mode != IDLE)
                dial(c);
            if (c->phase == OPEN && !send_all(c))
                drop(c, &lost);
        }
        while (now() < stop_at && !((mode == UPLOAD || mode == DOWNLOAD) && (done || lost || refused)))
            spin(timer, stop_at);
        if (mode < UPLOAD)
            stop_at = started + seconds;
    }
    double took = mode == STREAMS || mode == UPLOAD || mode == DOWNLOAD ? now() - started : seconds;
    uint64_t dropped = 0; /* connections that are no more; `lost` counts their messages too */
    for (long i = 0; i < n; i++)
        dropped += conns[i].phase == GONE;
    printf("{\"mode\": \"%s\", \"opened\": %llu, \"done\": %llu, \"bytes\": %llu, \"seconds\": %.6f, \"unequal\": %llu, "
           "\"lost\": %llu, \"refused\": %llu, \"dropped\": %llu, \"resumed\": %llu, \"why\": \"%s\"",
        MODES[mode], (unsigned long long)opened, (unsigned long long)done,
        (unsigned long long)(mode == UPLOAD ? bytes * done : done_bytes), took, (unsigned long long)unequal,
        (unsigned long long)lost, (unsigned long long)refused, (unsigned long long)dropped, (unsigned long long)resumed,
        why);
    say("latency", latencies, latency_count);
    if (mode == STREAMS)
        say("late", lateness, lateness_count);
    if (mode == REQUESTS && text)
        say("first", firsts, first_count);
    if (mode == IDLE)
        say("opening", openings, opening_count);
    printf("}\n");
    return unequal || lost || refused;
}
