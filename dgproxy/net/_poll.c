/* What uvloop's loop does about one fd, without an object of uvloop's for each event. Its plain twin is poll.LoopPoll.
 *
 * Rules of this file:
 * - libuv is the one that uvloop has within it, reached by the addresses that poll.py has found and proven there; of
 *   its structures nothing is known but their size.
 * - uvloop takes the data of a handle that it finds for an object of its own: it stays NULL, and ours lies behind it.
 * - Registering costs two system calls, so what nobody wants any more stays registered until it happens once more.
 * - While anything is registered the loop holds a reference, as with add_reader: it may be the only one.
 * - Of an error libuv tells once, as readable and writable, and then watches no more until it is asked again.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <structmember.h>

#include <stdbool.h>
#include <stdlib.h>

enum { POLL = 8, READABLE = 1, WRITABLE = 2 }; /* uv.h: UV_POLL, UV_READABLE, UV_WRITABLE */

static struct {
    size_t (*handle_size)(int type);
    int (*poll_init)(void *loop, void *handle, int fd);
    int (*poll_start)(void *handle, int events, void (*callback)(void *handle, int status, int events));
    int (*poll_stop)(void *handle);
    void (*close)(void *handle, void (*callback)(void *handle));
} uv;

static size_t handle_size; /* rounded up, so that a pointer can follow */

typedef struct Poll {
    PyObject_HEAD
    PyObject *loop, *on_readable, *on_writable; /* NULL: nobody */
    void *uv_loop, *handle;                     /* a uv_poll_t, with a pointer to us behind it */
    int fd, registered;
    bool closed;
    struct Poll *previous, *next; /* of those with a handle */
} Poll;

static Poll *first;

static Poll **owner(void *handle) { return (Poll **)((char *)handle + handle_size); }

static void on_closed(void *handle) { free(handle); }

/* --- registering ------------------------------------------------------------------------------------------------- */

static bool failed(int error)
{
    if (error < 0) {
        errno = -error; /* UV_E... are negated errno */
        PyErr_SetFromErrno(PyExc_OSError);
    }
    return error < 0;
}

static void call(Poll *self, PyObject *callback)
{
    PyObject *answer = PyObject_CallNoArgs(callback);
    if (answer != NULL) {
        Py_DECREF(answer);
        return;
    }
    PyObject *type, *error, *traceback, *told = NULL;
    PyErr_Fetch(&type, &error, &traceback);
    PyErr_NormalizeException(&type, &error, &traceback);
    if (traceback != NULL)
        PyException_SetTraceback(error, traceback);
    PyObject *context = Py_BuildValue("{s:s,s:O}", "message", "Exception in a callback of an fd", "exception", error);
    if (context != NULL)
        told = PyObject_CallMethod(self->loop, "call_exception_handler", "O", context);
    if (told == NULL)
        PyErr_WriteUnraisable(callback);
    Py_XDECREF(told);
    Py_XDECREF(context);
    Py_XDECREF(type);
    Py_XDECREF(error);
    Py_XDECREF(traceback);
}

static int wanted(const Poll *self)
{
    return (self->on_readable != NULL ? READABLE : 0) | (self->on_writable != NULL ? WRITABLE : 0);
}

static void on_event(void *handle, int status, int events);

static bool registers(Poll *self, int events)
{
    if (self->handle == NULL) {
        void *handle = calloc(1, handle_size + sizeof(Poll *));
        if (handle == NULL) {
            PyErr_NoMemory();
            return false;
        }
        int error = uv.poll_init(self->uv_loop, handle, self->fd);
        if (failed(error)) {
            free(handle);
            return false;
        }
        *(void **)handle = NULL; /* its data, uv.h's first field of every handle */
        *owner(handle) = self;
        self->handle = handle;
        if ((self->next = first) != NULL)
            first->previous = self;
        first = self;
    }
    if (failed(events ? uv.poll_start(self->handle, events, on_event) : uv.poll_stop(self->handle)))
        return false;
    int before = self->registered;
    self->registered = events;
    if (events && !before)
        Py_INCREF(self);
    else if (before && !events)
        Py_DECREF(self); /* never the last one: whoever called has it */
    return true;
}

static void on_event(void *handle, int status, int events)
{
    PyGILState_STATE state = PyGILState_Ensure();
    Poll *self = *owner(handle);
    if (self != NULL) {
        Py_INCREF(self);
        if (status < 0) { /* and libuv has stopped it */
            events = READABLE | WRITABLE;
            if (self->registered)
                Py_DECREF(self);
            self->registered = 0;
        }
        PyObject *callback;
        if (events & READABLE && (callback = self->on_readable) != NULL) {
            Py_INCREF(callback);
            call(self, callback);
            Py_DECREF(callback);
        }
        if (events & WRITABLE && (callback = self->on_writable) != NULL) {
            Py_INCREF(callback);
            call(self, callback);
            Py_DECREF(callback);
        }
        if (self->registered & events & ~wanted(self) && !registers(self, wanted(self)))
            PyErr_WriteUnraisable((PyObject *)self);
        Py_DECREF(self);
    }
    PyGILState_Release(state);
}

static void let_go(Poll *self)
{
    self->closed = true;
    if (self->handle != NULL) {
        *owner(self->handle) = NULL;
        uv.close(self->handle, on_closed);
        self->handle = NULL;
        if (self->previous != NULL)
            self->previous->next = self->next;
        else
            first = self->next;
        if (self->next != NULL)
            self->next->previous = self->previous;
        self->previous = self->next = NULL;
    }
    Py_CLEAR(self->on_readable);
    Py_CLEAR(self->on_writable);
    if (self->registered) {
        self->registered = 0;
        Py_DECREF(self);
    }
}

/* --- the type ---------------------------------------------------------------------------------------------------- */

static PyObject *set(Poll *self, PyObject **slot, PyObject *callback, int event)
{
    if (callback == Py_None)
        callback = NULL;
    if (self->closed) {
        if (callback == NULL)
            Py_RETURN_NONE;
        PyErr_SetString(PyExc_ValueError, "it is closed");
        return NULL;
    }
    PyObject *before = *slot;
    *slot = Py_XNewRef(callback);
    bool well = callback == NULL || self->registered & event || registers(self, wanted(self));
    if (!well)
        Py_CLEAR(*slot);
    Py_XDECREF(before);
    if (!well)
        return NULL;
    Py_RETURN_NONE;
}

PyDoc_STRVAR(read_doc, "read(callback)\n--\n\nSee poll.Poll.");

static PyObject *set_read(Poll *self, PyObject *callback)
{
    return set(self, &self->on_readable, callback, READABLE);
}

PyDoc_STRVAR(write_doc, "write(callback)\n--\n\nSee poll.Poll.");

static PyObject *set_write(Poll *self, PyObject *callback)
{
    return set(self, &self->on_writable, callback, WRITABLE);
}

PyDoc_STRVAR(close_doc, "close()\n--\n\nSee poll.Poll.");

static PyObject *close_it(Poll *self, PyObject *Py_UNUSED(ignored))
{
    Py_INCREF(self);
    let_go(self);
    Py_DECREF(self);
    Py_RETURN_NONE;
}

static int initialise(Poll *self, PyObject *arguments, PyObject *keywords)
{
    static char *names[] = {"loop", "uv_loop", "fd", NULL};
    PyObject *loop, *capsule;
    int fd;
    if (self->loop != NULL) {
        PyErr_SetString(PyExc_TypeError, "a poll is made once");
        return -1;
    }
    if (!PyArg_ParseTupleAndKeywords(arguments, keywords, "OOi:Poll", names, &loop, &capsule, &fd))
        return -1;
    if (uv.close == NULL) {
        PyErr_SetString(PyExc_RuntimeError, "bind() comes first");
        return -1;
    }
    if ((self->uv_loop = PyCapsule_GetPointer(capsule, NULL)) == NULL)
        return -1;
    self->loop = Py_NewRef(loop);
    self->fd = fd;
    self->closed = false;
    return 0;
}

static PyObject *make(PyTypeObject *type, PyObject *Py_UNUSED(arguments), PyObject *Py_UNUSED(keywords))
{
    Poll *self = (Poll *)type->tp_alloc(type, 0);
    if (self != NULL)
        self->closed = true; /* until it is initialised */
    return (PyObject *)self;
}

static int traverse(Poll *self, visitproc visit, void *arg)
{
    Py_VISIT(self->loop);
    Py_VISIT(self->on_readable);
    Py_VISIT(self->on_writable);
    Py_VISIT(Py_TYPE(self));
    return 0;
}

static int clear(Poll *self)
{
    Py_CLEAR(self->on_readable);
    Py_CLEAR(self->on_writable);
    Py_CLEAR(self->loop);
    return 0;
}

static void finalise(Poll *self) /* nothing is registered: that would have been a reference */
{
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    let_go(self);
    Py_CLEAR(self->loop);
    type->tp_free(self);
    Py_DECREF(type);
}

static PyMethodDef methods[] = {
    {"read", (PyCFunction)set_read, METH_O, read_doc},
    {"write", (PyCFunction)set_write, METH_O, write_doc},
    {"close", (PyCFunction)close_it, METH_NOARGS, close_doc},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot slots[] = {
    {Py_tp_doc, "Poll(loop, uv_loop, fd)\n--\n\nOf one fd; see poll.Poll."},
    {Py_tp_new, make},
    {Py_tp_init, initialise},
    {Py_tp_traverse, traverse},
    {Py_tp_clear, clear},
    {Py_tp_dealloc, finalise},
    {Py_tp_methods, methods},
    {0, NULL},
};

static PyType_Spec spec = {
    "dgproxy.net._poll.Poll", sizeof(Poll), 0, Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC, slots,
};

/* --- the module -------------------------------------------------------------------------------------------------- */

PyDoc_STRVAR(bind_doc,
    "bind(handle_size, poll_init, poll_start, poll_stop, close)\n--\n\n"
    "The addresses of libuv's functions of these names, in the library that uvloop has within it.");

static PyObject *bind_uv(PyObject *Py_UNUSED(module), PyObject *arguments)
{
    PyObject *found[5];
    if (!PyArg_ParseTuple(arguments, "OOOOO:bind", &found[0], &found[1], &found[2], &found[3], &found[4]))
        return NULL;
    void *addresses[5];
    for (int i = 0; i < 5; i++) {
        addresses[i] = PyLong_AsVoidPtr(found[i]);
        if (addresses[i] == NULL) {
            if (!PyErr_Occurred())
                PyErr_SetString(PyExc_ValueError, "an address is 0");
            return NULL;
        }
    }
    uv.handle_size = (size_t (*)(int))addresses[0];
    uv.poll_init = (int (*)(void *, void *, int))addresses[1];
    uv.poll_start = (int (*)(void *, int, void (*)(void *, int, int)))addresses[2];
    uv.poll_stop = (int (*)(void *))addresses[3];
    uv.close = (void (*)(void *, void (*)(void *)))addresses[4];
    handle_size = (uv.handle_size(POLL) + sizeof(void *) - 1) / sizeof(void *) * sizeof(void *);
    Py_RETURN_NONE;
}

PyDoc_STRVAR(close_all_doc, "close_all(loop)\n--\n\nCloses what is left of a loop's, which is about to be closed itself.");

static PyObject *close_all(PyObject *Py_UNUSED(module), PyObject *loop)
{
    Poll *poll = first;
    while (poll != NULL) {
        if (poll->loop != loop) {
            poll = poll->next;
            continue;
        }
        Py_INCREF(poll);
        let_go(poll);
        Py_DECREF(poll);
        poll = first; /* what was let go of may have let go of others */
    }
    Py_RETURN_NONE;
}

static PyMethodDef functions[] = {
    {"bind", bind_uv, METH_VARARGS, bind_doc},
    {"close_all", close_all, METH_O, close_all_doc},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, "dgproxy.net._poll", "An fd in uvloop's loop; see poll.py.", -1, functions,
    NULL, NULL, NULL, NULL,
};

PyMODINIT_FUNC PyInit__poll(void)
{
    PyObject *module = PyModule_Create(&definition);
    if (module == NULL)
        return NULL;
    PyObject *type = PyType_FromSpec(&spec);
    if (type == NULL || PyModule_AddObject(module, "Poll", type) < 0) {
        Py_XDECREF(type);
        Py_DECREF(module);
        return NULL;
    }
    return module;
}
