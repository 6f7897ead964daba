/* The relay's inner loop in C: read, look at the frames, count, send. Its plain twin is pump.Pump, which it must equal.
 *
 * Rules of this file:
 * - It does what is usual and nothing else: whatever is unusual (an end, an error, a sink that is full, a Close frame, a
 *   frame that breaks the rules, a head that came in pieces) is a call of the handler's, which is Python.
 * - It decides nothing about frames that Tracker.scan does not decide the same way: it either does what that would do,
 *   or leaves the tracker as it was and asks (judge).
 * - No call blocks; the GIL is held; a handler may stop the pump, after which no field but `stopped` may be used.
 * - An fd, or an SSL that leads to one, is used only until stop(): its number is the next connection's afterwards.
 * - Nothing of CPython's or OpenSSL's layout is known here: pointers come from libssl.py, which proves them; the
 *   tracker's slots are found by their descriptors.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <structmember.h>

#include <errno.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/socket.h>

enum { ROUNDS = 4 };                                      /* buffers an event at most: others have their turn */
enum { SSL_ERROR_WANT_READ = 2, SSL_ERROR_WANT_WRITE = 3, SSL_ERROR_ZERO_RETURN = 6 }; /* openssl/ssl.h */
enum { DRY = -1, BROKEN = -2 };

static struct {
    int (*read)(void *ssl, void *buffer, int size);
    int (*write)(void *ssl, const void *buffer, int size);
    int (*get_error)(const void *ssl, int result);
    int (*has_pending)(const void *ssl);
    void (*set_read_ahead)(void *ssl, int yes);
    void (*clear_error)(void);
} openssl;

static PyObject *name_end, *name_lost, *name_refused, *name_judge, *name_keep, *name_again;
static PyObject *zero;

typedef struct {
    int fd;
    void *ssl;      /* NULL: plain */
    PyObject *keep; /* whose these are */
} Peer;

typedef struct {
    PyObject_HEAD
    Peer source, sink;
    PyObject *tracker, *handler;
    Py_buffer buffer;
    Py_ssize_t left_at, fragmented_at, held_at, closed_at; /* the tracker's slots */
    unsigned char mask;                                     /* 0x80 if the source's frames are masked */
    bool stopped;
    bool behind; /* OpenSSL has more, or has an end or an error that it will give again: no poll tells of it */
    unsigned long long count;
} Pump;

/* --- frames (RFC 6455 5.2), as Tracker.scan has them ------------------------------------------------------------- */

static PyObject **slot(PyObject *object, Py_ssize_t offset) { return (PyObject **)((char *)object + offset); }

static void put(PyObject *object, Py_ssize_t offset, PyObject *value)
{
    PyObject **at = slot(object, offset);
    PyObject *old = *at;
    *at = value; /* stolen */
    Py_XDECREF(old);
}

/* Whether all `size` bytes pass, as usual; then the tracker is as Tracker.scan leaves it. -1: an error is set. */
static int usual(Pump *self, const unsigned char *data, uint64_t size)
{
    PyObject *tracker = self->tracker;
    PyObject *held = *slot(tracker, self->held_at);
    if (*slot(tracker, self->closed_at) != Py_False || !PyBytes_CheckExact(held) || PyBytes_GET_SIZE(held) != 0)
        return 0;
    PyObject *left_object = *slot(tracker, self->left_at);
    uint64_t left = left_object == zero ? 0 : PyLong_AsUnsignedLongLong(left_object);
    if (left == (uint64_t)-1 && PyErr_Occurred())
        return -1;
    bool fragmented = *slot(tracker, self->fragmented_at) == Py_True;
    bool within = fragmented;
    uint64_t at = left;
    while (at < size) {
        if (size - at < 2)
            return 0;
        unsigned char first = data[at], opcode = first & 0x0f;
        bool final = (first & 0x80) != 0;
        uint64_t length = data[at + 1] ^ self->mask, head = 2;
        if (first & 0x70 || length > 127)
            return 0;
        switch (opcode) {
        case 0x0: /* continuation */
            if (!within)
                return 0;
            within = !final;
            break;
        case 0x1: /* text */
        case 0x2: /* binary */
            if (within)
                return 0;
            within = !final;
            break;
        case 0x9: /* ping */
        case 0xa: /* pong */
            if (!final || length > 125)
                return 0;
            break;
        default: /* a Close, or what is not allowed */
            return 0;
        }
        if (length >= 126) {
            uint64_t bytes = length == 126 ? 2 : 8, least = length == 126 ? 126 : 65536;
            head += bytes;
            if (size - at < head)
                return 0;
            length = 0;
            for (uint64_t i = 0; i < bytes; i++)
                length = length << 8 | data[at + 2 + i];
            if (length < least || length >> 63)
                return 0;
        }
        if (self->mask)
            head += 4;
        if (size - at < head)
            return 0;
        at += head + length; /* below 2^63 + 2^17 */
    }
    if (within != fragmented)
        put(tracker, self->fragmented_at, Py_NewRef(within ? Py_True : Py_False));
    if (at - size != left) {
        PyObject *rest = PyLong_FromUnsignedLongLong(at - size);
        if (rest == NULL)
            return -1;
        put(tracker, self->left_at, rest);
    }
    return 1;
}

/* --- I/O --------------------------------------------------------------------------------------------------------- */

/* Bytes read, 0 at the end of the stream, DRY, or BROKEN. */
static Py_ssize_t receive(Peer *peer, char *buffer, Py_ssize_t size)
{
    if (peer->ssl == NULL) {
        ssize_t got;
        do
            got = recv(peer->fd, buffer, (size_t)size, 0);
        while (got < 0 && errno == EINTR);
        return got >= 0 ? got : errno == EAGAIN || errno == EWOULDBLOCK ? DRY : BROKEN;
    }
    openssl.clear_error(); /* what another connection left there would be taken for this one's */
    int got = openssl.read(peer->ssl, buffer, (int)size);
    if (got > 0)
        return got;
    int error = openssl.get_error(peer->ssl, got);
    openssl.clear_error();
    switch (error) {
    case SSL_ERROR_WANT_READ:
    case SSL_ERROR_WANT_WRITE:
        return DRY;
    case SSL_ERROR_ZERO_RETURN:
        return 0;
    default:
        return BROKEN;
    }
}

/* Bytes sent, DRY, or BROKEN. */
static Py_ssize_t give(Peer *peer, const char *data, Py_ssize_t size)
{
    if (peer->ssl == NULL) {
        ssize_t sent;
        do
            sent = send(peer->fd, data, (size_t)size, MSG_NOSIGNAL);
        while (sent < 0 && errno == EINTR);
        return sent >= 0 ? sent : errno == EAGAIN || errno == EWOULDBLOCK ? DRY : BROKEN;
    }
    openssl.clear_error();
    int sent = openssl.write(peer->ssl, data, (int)size);
    if (sent > 0)
        return sent;
    int error = openssl.get_error(peer->ssl, sent);
    openssl.clear_error();
    return error == SSL_ERROR_WANT_WRITE || error == SSL_ERROR_WANT_READ ? DRY : BROKEN;
}

static bool buffered(const Peer *peer) { return peer->ssl != NULL && openssl.has_pending(peer->ssl); }

/* --- the pump ---------------------------------------------------------------------------------------------------- */

static bool told(PyObject *answer)
{
    Py_XDECREF(answer);
    return answer != NULL;
}

static bool tell(Pump *self, PyObject *name) { return told(PyObject_CallMethodNoArgs(self->handler, name)); }

static bool tell_size(Pump *self, Py_ssize_t size)
{
    PyObject *number = PyLong_FromSsize_t(size);
    if (number == NULL)
        return false;
    PyObject *answer = PyObject_CallMethodOneArg(self->handler, name_judge, number);
    Py_DECREF(number);
    return told(answer);
}

static bool tell_rest(Pump *self, Py_ssize_t at, Py_ssize_t size)
{
    PyObject *from = PyLong_FromSsize_t(at), *to = PyLong_FromSsize_t(size);
    bool well = from != NULL && to != NULL
        && told(PyObject_CallMethodObjArgs(self->handler, name_keep, from, to, NULL));
    Py_XDECREF(from);
    Py_XDECREF(to);
    return well;
}

/* True: all was sent. False: the handler was told, or (with an error set) could not be. */
static bool pass_on(Pump *self, Py_ssize_t size)
{
    const char *data = self->buffer.buf;
    Py_ssize_t at = 0;
    while (at < size) {
        Py_ssize_t sent = give(&self->sink, data + at, size - at);
        if (sent == DRY)
            return tell_rest(self, at, size) && false;
        if (sent == BROKEN)
            return tell(self, name_refused) && false;
        at += sent;
    }
    return true;
}

PyDoc_STRVAR(run_doc, "run()\n--\n\nPumps what is there. Whether there may be more to read at once.");

static PyObject *run(Pump *self, PyObject *Py_UNUSED(ignored))
{
    Py_INCREF(self); /* a handler may let go of us */
    bool more = true, well = true;
    self->behind = false;
    for (int round = 0; round < ROUNDS && !self->stopped; round++) {
        char *buffer = self->buffer.buf;
        Py_ssize_t size = 0, got;
        do {
            got = receive(&self->source, buffer + size, self->buffer.len - size);
            if (got > 0)
                size += got;
        } while (got > 0 && size < self->buffer.len && buffered(&self->source));
        if (!size) {
            more = false;
            well = got == DRY || tell(self, got == 0 ? name_end : name_lost);
            goto out;
        }
        /* OpenSSL gives an end or an error again, so what came before is dealt with first. */
        self->behind = got > 0 ? buffered(&self->source) : got != DRY;
        int passes = usual(self, (const unsigned char *)buffer, (uint64_t)size);
        if (passes < 0) {
            well = false;
            goto out;
        }
        if (!passes) {
            well = tell_size(self, size);
            break;
        }
        self->count += (unsigned long long)size;
        if (!pass_on(self, size)) {
            well = !PyErr_Occurred();
            break;
        }
        if (size < self->buffer.len && !self->behind) /* it has most likely emptied the socket, and poll tells if not */
            goto out;
    }
    if (well && self->behind && !self->stopped)
        well = tell(self, name_again);
out:
    Py_DECREF(self);
    return well ? PyBool_FromLong(more) : NULL;
}

PyDoc_STRVAR(pending_doc, "pending()\n--\n\nWhether the source has bytes, or an end, of which no poll of its fd will tell.");

static PyObject *pending(Pump *self, PyObject *Py_UNUSED(ignored))
{
    return PyBool_FromLong(!self->stopped && (self->behind || buffered(&self->source)));
}

PyDoc_STRVAR(stop_doc, "stop()\n--\n\nUses neither peer any more; may be called twice.");

static void let_go(Pump *self)
{
    self->stopped = true;
    self->source.ssl = self->sink.ssl = NULL;
    self->source.fd = self->sink.fd = -1;
    Py_CLEAR(self->source.keep);
    Py_CLEAR(self->sink.keep);
    Py_CLEAR(self->handler);
}

static PyObject *stop(Pump *self, PyObject *Py_UNUSED(ignored))
{
    let_go(self);
    Py_RETURN_NONE;
}

/* Where a slot of the tracker's type lies; -1 with an error set if it has none. */
static Py_ssize_t offset_of(PyObject *object, const char *name)
{
    PyObject *found = PyObject_GetAttrString((PyObject *)Py_TYPE(object), name);
    Py_ssize_t offset = -1;
    if (found == NULL)
        return -1;
    if (Py_TYPE(found) == &PyMemberDescr_Type && ((PyMemberDescrObject *)found)->d_member->type == T_OBJECT_EX
        && *slot(object, ((PyMemberDescrObject *)found)->d_member->offset) != NULL)
        offset = ((PyMemberDescrObject *)found)->d_member->offset;
    else
        PyErr_Format(PyExc_TypeError, "the tracker has no slot %s", name);
    Py_DECREF(found);
    return offset;
}

static void *pointer(PyObject *number)
{
    return PyLong_AsVoidPtr(number); /* 0: NULL */
}

static int initialise(Pump *self, PyObject *arguments, PyObject *keywords)
{
    static char *names[] = {"source", "sink", "buffer", "tracker", "masked", "handler", NULL};
    PyObject *source_ssl, *sink_ssl, *source_keep, *sink_keep, *buffer, *tracker, *handler;
    int masked, source_fd, sink_fd;
    if (self->tracker != NULL) {
        PyErr_SetString(PyExc_TypeError, "a pump is made once");
        return -1;
    }
    if (!PyArg_ParseTupleAndKeywords(arguments, keywords, "(iO!O)(iO!O)OOpO:Pump", names, &source_fd, &PyLong_Type,
            &source_ssl, &source_keep, &sink_fd, &PyLong_Type, &sink_ssl, &sink_keep, &buffer, &tracker, &masked, &handler))
        return -1;
    self->source.ssl = pointer(source_ssl);
    self->sink.ssl = pointer(sink_ssl);
    if (PyErr_Occurred())
        return -1;
    if ((self->source.ssl || self->sink.ssl) && openssl.read == NULL) {
        PyErr_SetString(PyExc_RuntimeError, "bind() comes first");
        return -1;
    }
    if ((self->left_at = offset_of(tracker, "left")) < 0 || (self->fragmented_at = offset_of(tracker, "fragmented")) < 0
        || (self->held_at = offset_of(tracker, "held")) < 0 || (self->closed_at = offset_of(tracker, "closed")) < 0)
        return -1;
    if (PyObject_GetBuffer(buffer, &self->buffer, PyBUF_WRITABLE) < 0)
        return -1;
    self->mask = masked ? 0x80 : 0;
    self->source.fd = source_fd;
    self->sink.fd = sink_fd;
    self->source.keep = Py_NewRef(source_keep);
    self->sink.keep = Py_NewRef(sink_keep);
    self->tracker = Py_NewRef(tracker);
    self->handler = Py_NewRef(handler);
    self->stopped = false;
    if (self->source.ssl)
        openssl.set_read_ahead(self->source.ssl, 1);
    return 0;
}

static PyObject *make(PyTypeObject *type, PyObject *Py_UNUSED(arguments), PyObject *Py_UNUSED(keywords))
{
    Pump *self = (Pump *)type->tp_alloc(type, 0);
    if (self != NULL) {
        self->stopped = true; /* until it is initialised */
        self->source.fd = self->sink.fd = -1;
    }
    return (PyObject *)self;
}

static int traverse(Pump *self, visitproc visit, void *arg)
{
    Py_VISIT(self->source.keep);
    Py_VISIT(self->sink.keep);
    Py_VISIT(self->tracker);
    Py_VISIT(self->handler);
    Py_VISIT(self->buffer.obj);
    Py_VISIT(Py_TYPE(self));
    return 0;
}

static int clear(Pump *self)
{
    let_go(self);
    Py_CLEAR(self->tracker);
    return 0;
}

static void finalise(Pump *self)
{
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    clear(self);
    if (self->buffer.obj != NULL)
        PyBuffer_Release(&self->buffer);
    type->tp_free(self);
    Py_DECREF(type);
}

static PyMethodDef methods[] = {
    {"run", (PyCFunction)run, METH_NOARGS, run_doc},
    {"pending", (PyCFunction)pending, METH_NOARGS, pending_doc},
    {"stop", (PyCFunction)stop, METH_NOARGS, stop_doc},
    {NULL, NULL, 0, NULL},
};

static PyMemberDef members[] = {
    {"count", T_ULONGLONG, offsetof(Pump, count), 0, "bytes of the source that were passed on"},
    {NULL, 0, 0, 0, NULL},
};

static PyType_Slot slots[] = {
    {Py_tp_doc, "Pump(source, sink, buffer, tracker, masked, handler)\n--\n\nOne direction; see pump.Pump."},
    {Py_tp_new, make},
    {Py_tp_init, initialise},
    {Py_tp_traverse, traverse},
    {Py_tp_clear, clear},
    {Py_tp_dealloc, finalise},
    {Py_tp_methods, methods},
    {Py_tp_members, members},
    {0, NULL},
};

static PyType_Spec spec = {
    "dgproxy.net._pump.Pump", sizeof(Pump), 0, Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC, slots,
};

/* --- the module -------------------------------------------------------------------------------------------------- */

PyDoc_STRVAR(bind_doc,
    "bind(read, write, get_error, has_pending, set_read_ahead, clear_error)\n--\n\n"
    "The addresses of OpenSSL's functions of these names, in the library that Python's ssl has loaded.");

static PyObject *bind_openssl(PyObject *Py_UNUSED(module), PyObject *arguments)
{
    PyObject *found[6];
    if (!PyArg_ParseTuple(arguments, "OOOOOO:bind", &found[0], &found[1], &found[2], &found[3], &found[4], &found[5]))
        return NULL;
    void *addresses[6];
    for (int i = 0; i < 6; i++) {
        addresses[i] = PyLong_AsVoidPtr(found[i]);
        if (addresses[i] == NULL) {
            if (!PyErr_Occurred())
                PyErr_SetString(PyExc_ValueError, "an address is 0");
            return NULL;
        }
    }
    openssl.read = (int (*)(void *, void *, int))addresses[0];
    openssl.write = (int (*)(void *, const void *, int))addresses[1];
    openssl.get_error = (int (*)(const void *, int))addresses[2];
    openssl.has_pending = (int (*)(const void *))addresses[3];
    openssl.set_read_ahead = (void (*)(void *, int))addresses[4];
    openssl.clear_error = (void (*)(void))addresses[5];
    Py_RETURN_NONE;
}

static PyMethodDef functions[] = {
    {"bind", bind_openssl, METH_VARARGS, bind_doc},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, "dgproxy.net._pump", "The relay's inner loop; see pump.py.", -1, functions,
    NULL, NULL, NULL, NULL,
};

PyMODINIT_FUNC PyInit__pump(void)
{
    struct {
        PyObject **at;
        const char *name;
    } names[] = {
        {&name_end, "end_of_stream"}, {&name_lost, "lost"}, {&name_refused, "refused"},
        {&name_judge, "judge"}, {&name_keep, "keep"}, {&name_again, "again"},
    };
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if ((*names[i].at = PyUnicode_InternFromString(names[i].name)) == NULL)
            return NULL;
    if ((zero = PyLong_FromLong(0)) == NULL)
        return NULL;
    PyObject *module = PyModule_Create(&definition);
    if (module == NULL)
        return NULL;
    PyObject *type = PyType_FromSpec(&spec);
    if (type == NULL || PyModule_AddObject(module, "Pump", type) < 0) {
        Py_XDECREF(type);
        Py_DECREF(module);
        return NULL;
    }
    return module;
}
