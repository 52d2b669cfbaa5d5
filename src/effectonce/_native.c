/* What numpy needs twenty passes over a batch for, in one.

   Each function here has a twin in Python, which is the rule, the fallback where no compiler was,
   and the oracle of its tests (native.py says which). Nothing here keeps anything between calls,
   allocates for longer than one, or trusts a length: whatever does not fit is a ValueError.

   The stable ABI: one build serves every CPython from 3.11 on, but those without a GIL.

   A look-up among 1e7 keys waits for memory twice. So a batch goes through in groups of GROUP, and
   what the next step will read is asked for (prefetched) one step ahead. */

#define PY_SSIZE_T_CLEAN
#if !defined(Py_GIL_DISABLED)
#define Py_LIMITED_API 0x030B0000
#endif
#include <Python.h>
#include <stdint.h>
#include <string.h>

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

#if defined(__GNUC__)
#define PREFETCH(address) __builtin_prefetch(address)
#else
#define PREFETCH(address) ((void)0)
#endif

enum { KEY = 16, SLOTS = 16, GROUP = 64, UUID_TEXT = 36 };

/* -- objects ------------------------------------------------------------------------------------- */

enum { SOON = 8, LINE = 64 };

/* Asks for the first lines of an object that is read some steps later: a batch of messages is larger
   than the cache next to a core, so each pass over it would wait for the next one. */
static void ask_for(PyObject *list, Py_ssize_t at, int lines) {
    if (at >= PyList_Size(list)) return;
    const char *object = (const char *)PyList_GetItem(list, at); /* only its address is used */
    for (int line = 0; line < lines; line++) PREFETCH(object + line * LINE);
}

/* -- UUIDs --------------------------------------------------------------------------------------- */

static int8_t digit_of[256]; /* of lower-case hex; -1: none */

static void prepare_digits(void) {
    memset(digit_of, -1, sizeof digit_of);
    for (int i = 0; i < 10; i++) digit_of['0' + i] = (int8_t)i;
    for (int i = 0; i < 6; i++) digit_of['a' + i] = (int8_t)(10 + i);
}

/* 16 bytes of a lower-case UUID text of the RFC 4122 variant; 0 if it is none. */
static int parse_uuid(const unsigned char *text, unsigned char *key) {
    static const unsigned char at[KEY] = {0, 2, 4, 6, 9, 11, 14, 16, 19, 21, 24, 26, 28, 30, 32, 34};
    int bad = (text[8] ^ '-') | (text[13] ^ '-') | (text[18] ^ '-') | (text[23] ^ '-');
    int digits = 0;
    for (int i = 0; i < KEY; i++) {
        int high = digit_of[text[at[i]]], low = digit_of[text[at[i] + 1]];
        digits |= high | low; /* negative once one was */
        key[i] = (unsigned char)(((unsigned)high & 15) << 4 | ((unsigned)low & 15));
    }
    return !bad && digits >= 0 && (key[8] & 0xC0) == 0x80;
}

static PyObject *uuid_keys(PyObject *module, PyObject *ids) {
    (void)module;
    if (!PyList_Check(ids)) {
        PyErr_SetString(PyExc_TypeError, "a list of IDs");
        return NULL;
    }
    Py_ssize_t count = PyList_Size(ids);
    PyObject *keys = PyBytes_FromStringAndSize(NULL, count * KEY);
    if (keys == NULL) return NULL;
    unsigned char *key = (unsigned char *)PyBytes_AsString(keys);
    for (Py_ssize_t row = 0; row < count; row++, key += KEY) {
        ask_for(ids, row + SOON, 2);
        PyObject *id = PyList_GetItem(ids, row);
        if (!PyBytes_Check(id) || PyBytes_Size(id) != UUID_TEXT ||
            !parse_uuid((const unsigned char *)PyBytes_AsString(id), key)) {
            Py_DECREF(keys);
            Py_RETURN_NONE;
        }
    }
    return keys;
}

/* -- fingerprints -------------------------------------------------------------------------------- */

/* fingerprints(values, digest): of each value the low half of its digest, as u32. None where one is
   not bytes. */
static PyObject *fingerprints(PyObject *module, PyObject *args) {
    (void)module;
    PyObject *values, *digest;
    if (!PyArg_ParseTuple(args, "O!O", &PyList_Type, &values, &digest)) return NULL;
    Py_ssize_t count = PyList_Size(values);
    PyObject *found = PyByteArray_FromStringAndSize(NULL, count * (Py_ssize_t)sizeof(uint32_t));
    if (found == NULL) return NULL;
    uint32_t *fingerprint = (uint32_t *)PyByteArray_AsString(found);
    for (Py_ssize_t row = 0; row < count; row++) {
        ask_for(values, row + SOON, 3);
        PyObject *value = PyList_GetItem(values, row);
        if (value == NULL || !PyBytes_CheckExact(value)) {
            Py_DECREF(found);
            if (PyErr_Occurred()) return NULL;
            Py_RETURN_NONE;
        }
        PyObject *number = PyObject_CallFunctionObjArgs(digest, value, NULL);
        unsigned long long hash = number != NULL ? PyLong_AsUnsignedLongLongMask(number) : 0;
        Py_XDECREF(number);
        if (number == NULL || (hash == UINT64_MAX && PyErr_Occurred())) {
            Py_DECREF(found);
            return NULL;
        }
        fingerprint[row] = (uint32_t)hash;
    }
    return found;
}

/* -- hashes -------------------------------------------------------------------------------------- */

typedef struct {
    uint32_t addends[4];
    uint64_t multiplier;
} Mix;

/* `_Mix` of stores/index.py, for one key. */
static uint64_t mixed(const Mix *mix, const unsigned char *key) {
    uint32_t parts[4];
    uint64_t words[2];
    memcpy(parts, key, KEY);
    for (int i = 0; i < 4; i++) parts[i] += mix->addends[i];
    memcpy(words, parts, KEY);
    uint64_t hash = (words[0] >> 32) * (words[0] & 0xFFFFFFFF);
    hash += (words[1] >> 32) * (words[1] & 0xFFFFFFFF);
    hash ^= hash >> 32;
    return hash * mix->multiplier;
}

/* -- a table's buffers --------------------------------------------------------------------------- */

typedef struct {
    Py_buffer keys, secret, tags, rows, log;
    Mix mix;
    Py_ssize_t count; /* keys of the batch */
    uint64_t buckets;
    uint64_t capacity; /* of the log */
} Table;

static void release(Table *table) {
    PyBuffer_Release(&table->keys);
    PyBuffer_Release(&table->secret);
    PyBuffer_Release(&table->tags);
    PyBuffer_Release(&table->rows);
    PyBuffer_Release(&table->log);
}

/* Whether the lengths agree, so that every index below is within its buffer. */
static int is_sound(Table *table) {
    uintptr_t addresses = (uintptr_t)table->tags.buf | (uintptr_t)table->rows.buf;
    if (addresses % 4 || table->secret.len != (Py_ssize_t)(sizeof(uint32_t) * 4 + sizeof(uint64_t)) ||
        table->keys.len % KEY || table->log.len % KEY || table->tags.len % (2 * SLOTS)) {
        PyErr_SetString(PyExc_ValueError, "no keys, secret, tags or log of an index");
        return 0;
    }
    table->count = table->keys.len / KEY;
    table->buckets = (uint64_t)(table->tags.len / (2 * SLOTS));
    table->capacity = (uint64_t)(table->log.len / KEY);
    if (!table->buckets || table->buckets > UINT32_MAX || table->capacity > (uint64_t)UINT32_MAX + 1 ||
        (uint64_t)table->rows.len != table->buckets * SLOTS * 4) {
        PyErr_SetString(PyExc_ValueError, "tags, rows and log are not of one table");
        return 0;
    }
    memcpy(table->mix.addends, table->secret.buf, sizeof table->mix.addends);
    memcpy(&table->mix.multiplier, (const char *)table->secret.buf + sizeof table->mix.addends,
           sizeof table->mix.multiplier);
    return 1;
}

typedef struct {
    uint64_t bucket[GROUP];
    uint16_t tag[GROUP];
    uint32_t bits[GROUP];
} Group;

/* Where the next group of the batch belongs, as `_Table._address` has it; returns how many keys. */
static int address(const Table *table, Py_ssize_t first, Group *group) {
    const unsigned char *key = (const unsigned char *)table->keys.buf + first * KEY;
    int size = (int)(table->count - first < GROUP ? table->count - first : GROUP);
    for (int at = 0; at < size; at++, key += KEY) {
        uint64_t hash = mixed(&table->mix, key);
        group->bucket[at] = ((hash >> 32) * table->buckets) >> 32;
        group->tag[at] = (uint16_t)hash | 1;
        PREFETCH((const uint16_t *)table->tags.buf + group->bucket[at] * SLOTS);
    }
    return size;
}

/* Which of a bucket's tags are this one, as bits. */
static uint32_t nominated(const uint16_t *tags, uint16_t tag) {
    uint32_t bits = 0;
#if defined(__SSE2__)
    __m128i wanted = _mm_set1_epi16((short)tag);
    __m128i low = _mm_cmpeq_epi16(_mm_loadu_si128((const __m128i *)tags), wanted);
    __m128i high = _mm_cmpeq_epi16(_mm_loadu_si128((const __m128i *)(tags + 8)), wanted);
    bits = (uint32_t)_mm_movemask_epi8(_mm_packs_epi16(low, high));
#else
    for (int slot = 0; slot < SLOTS; slot++) bits |= (uint32_t)(tags[slot] == tag) << slot;
#endif
    return bits;
}

static int lowest(uint32_t bits) {
    int slot = 0;
    while (!(bits >> slot & 1)) slot++;
    return slot;
}

/* -- looking up ---------------------------------------------------------------------------------- */

/* The row of a key that stands here at `least` or above; -1: it does not. */
static int64_t verified(const Table *table, const Group *group, int at, const unsigned char *key,
                        int64_t least) {
    const uint32_t *rows = (const uint32_t *)table->rows.buf + group->bucket[at] * SLOTS;
    for (uint32_t bits = group->bits[at]; bits; bits &= bits - 1) {
        uint64_t row = rows[lowest(bits)];
        if (row < table->capacity && (int64_t)row >= least &&
            !memcmp((const unsigned char *)table->log.buf + row * KEY, key, KEY))
            return (int64_t)row;
    }
    return -1;
}

/* Fills `found` with positions, or -1; returns how many of these have a full bucket (`full`). */
static Py_ssize_t find_all(const Table *table, int64_t least, int64_t base, int64_t *found,
                           uint32_t *full) {
    const unsigned char *keys = table->keys.buf;
    const uint16_t *tags = table->tags.buf;
    const uint32_t *rows = table->rows.buf;
    Py_ssize_t crowded = 0;
    Group group;
    for (Py_ssize_t first = 0; first < table->count; first += GROUP) {
        int size = address(table, first, &group);
        for (int at = 0; at < size; at++) {
            group.bits[at] = nominated(tags + group.bucket[at] * SLOTS, group.tag[at]);
            if (group.bits[at]) PREFETCH(rows + group.bucket[at] * SLOTS);
        }
        for (int at = 0; at < size; at++) {
            if (!group.bits[at]) continue;
            uint64_t row = rows[group.bucket[at] * SLOTS + lowest(group.bits[at])];
            if (row < table->capacity) PREFETCH((const unsigned char *)table->log.buf + row * KEY);
        }
        for (int at = 0; at < size; at++) {
            int64_t row = verified(table, &group, at, keys + (first + at) * KEY, least);
            found[first + at] = row < 0 ? -1 : row + base;
            if (row < 0 && tags[group.bucket[at] * SLOTS + SLOTS - 1])
                full[crowded++] = (uint32_t)(first + at);
        }
    }
    return crowded;
}

/* find(keys, secret, tags, rows, log, least, base) -> positions as i64, rows as u32 */
static PyObject *find(PyObject *module, PyObject *args) {
    (void)module;
    Table table;
    long long least, base;
    if (!PyArg_ParseTuple(args, "y*y*y*y*y*LL", &table.keys, &table.secret, &table.tags, &table.rows,
                          &table.log, &least, &base))
        return NULL;
    PyObject *answer = NULL, *found = NULL, *full = NULL;
    if (is_sound(&table)) {
        found = PyByteArray_FromStringAndSize(NULL, table.count * (Py_ssize_t)sizeof(int64_t));
        full = PyByteArray_FromStringAndSize(NULL, table.count * (Py_ssize_t)sizeof(uint32_t));
        if (found != NULL && full != NULL) {
            Py_ssize_t crowded = find_all(&table, least, base, (int64_t *)PyByteArray_AsString(found),
                                          (uint32_t *)PyByteArray_AsString(full));
            if (!PyByteArray_Resize(full, crowded * (Py_ssize_t)sizeof(uint32_t)))
                answer = PyTuple_Pack(2, found, full);
        }
    }
    Py_XDECREF(found);
    Py_XDECREF(full);
    release(&table);
    return answer;
}

/* marked(keys, secret, tags, rows, log, fingerprints, least) -> a byte a key, fingerprints as u32 */
static PyObject *marked(PyObject *module, PyObject *args) {
    (void)module;
    Table table;
    Py_buffer prints;
    long long least;
    if (!PyArg_ParseTuple(args, "y*y*y*y*y*y*L", &table.keys, &table.secret, &table.tags,
                          &table.rows, &table.log, &prints, &least))
        return NULL;
    PyObject *answer = NULL, *seen = NULL, *found = NULL;
    int64_t *positions = NULL;
    uint32_t *full = NULL;
    if (is_sound(&table)) {
        size_t count = (size_t)table.count;
        positions = PyMem_Malloc(count * sizeof *positions + 1);
        full = PyMem_Malloc(count * sizeof *full + 1);
        seen = PyByteArray_FromStringAndSize(NULL, table.count);
        found = PyByteArray_FromStringAndSize(NULL, table.count * (Py_ssize_t)sizeof(uint32_t));
        if ((uint64_t)prints.len != table.capacity * 4 || (uintptr_t)prints.buf % 4)
            PyErr_SetString(PyExc_ValueError, "fingerprints and log are not of one table");
        else if (positions == NULL || full == NULL)
            PyErr_NoMemory();
        else if (seen != NULL && found != NULL) {
            const uint32_t *of_rows = prints.buf;
            unsigned char *is_seen = (unsigned char *)PyByteArray_AsString(seen);
            uint32_t *fingerprint = (uint32_t *)PyByteArray_AsString(found);
            find_all(&table, least, 0, positions, full);
            for (size_t at = 0; at < count; at++)
                if (positions[at] >= 0) PREFETCH(of_rows + positions[at]);
            for (size_t at = 0; at < count; at++) {
                is_seen[at] = positions[at] >= 0;
                fingerprint[at] = is_seen[at] ? of_rows[positions[at]] : 0;
            }
            answer = PyTuple_Pack(2, seen, found);
        }
    }
    PyMem_Free(positions);
    PyMem_Free(full);
    Py_XDECREF(seen);
    Py_XDECREF(found);
    PyBuffer_Release(&prints);
    release(&table);
    return answer;
}

/* -- inserting ----------------------------------------------------------------------------------- */

/* Puts each key into the next free slot of its bucket; returns how many found none (`spilled`). */
static Py_ssize_t put_all(const Table *table, uint8_t *fill, uint64_t start, uint32_t *spilled) {
    uint16_t *tags = table->tags.buf;
    uint32_t *rows = table->rows.buf;
    Py_ssize_t left_over = 0;
    Group group;
    for (Py_ssize_t first = 0; first < table->count; first += GROUP) {
        int size = address(table, first, &group);
        for (int at = 0; at < size; at++) {
            PREFETCH(fill + group.bucket[at]);
            PREFETCH(rows + group.bucket[at] * SLOTS);
        }
        for (int at = 0; at < size; at++) {
            uint64_t bucket = group.bucket[at];
            uint32_t row = (uint32_t)(start + (uint64_t)(first + at));
            if (fill[bucket] >= SLOTS) {
                spilled[left_over++] = row;
                continue;
            }
            uint64_t slot = bucket * SLOTS + fill[bucket]++;
            rows[slot] = row;
            tags[slot] = group.tag[at];
        }
    }
    return left_over;
}

/* put(keys, secret, tags, rows, log, fill, spilled, start)
   `spilled` holds a u32 more than there are keys: how many rows found no slot, then these rows. It is
   the caller's, since from the first write on nothing here may fail. */
static PyObject *put(PyObject *module, PyObject *args) {
    (void)module;
    Table table;
    Py_buffer fill, spilled;
    long long start;
    if (!PyArg_ParseTuple(args, "y*y*w*w*w*w*w*L", &table.keys, &table.secret, &table.tags,
                          &table.rows, &table.log, &fill, &spilled, &start))
        return NULL;
    PyObject *answer = NULL;
    if (is_sound(&table)) {
        if ((uint64_t)fill.len != table.buckets || start < 0 || (uint64_t)start > table.capacity ||
            (uint64_t)table.count > table.capacity - (uint64_t)start ||
            (uintptr_t)spilled.buf % 4 || spilled.len / 4 <= table.count) {
            PyErr_SetString(PyExc_ValueError, "the keys do not fit into that table");
        } else {
            memmove((unsigned char *)table.log.buf + start * KEY, table.keys.buf,
                    (size_t)table.keys.len);
            uint32_t *rows = spilled.buf;
            rows[0] = (uint32_t)put_all(&table, fill.buf, (uint64_t)start, rows + 1);
            Py_INCREF(Py_None);
            answer = Py_None;
        }
    }
    PyBuffer_Release(&fill);
    PyBuffer_Release(&spilled);
    release(&table);
    return answer;
}

/* -- repeats inside a batch ---------------------------------------------------------------------- */

enum { FEW_KEYS = 1 << 16, MOST_PROBES = 64 };

/* Whether two of the keys may be equal: False is a proof. Crafted keys that crowd one place are
   called equal, so that nobody can make it slow. */
static PyObject *may_repeat(PyObject *module, PyObject *arg) {
    (void)module;
    Py_buffer keys;
    if (PyObject_GetBuffer(arg, &keys, PyBUF_SIMPLE)) return NULL;
    Py_ssize_t count = keys.len / KEY;
    size_t places = 16;
    while (places < 2 * (size_t)count) places *= 2;
    if (keys.len % KEY || count >= FEW_KEYS) {
        PyBuffer_Release(&keys);
        PyErr_SetString(PyExc_ValueError, "no batch of keys");
        return NULL;
    }
    uint16_t *place = PyMem_Calloc(places, sizeof *place); /* row + 1; 0 is free */
    if (place == NULL) {
        PyBuffer_Release(&keys);
        return PyErr_NoMemory();
    }
    const unsigned char *all = keys.buf;
    int repeats = 0;
    for (Py_ssize_t row = 0; row < count && !repeats; row++) {
        uint64_t words[2];
        memcpy(words, all + row * KEY, KEY);
        uint64_t hash = (words[0] ^ (words[1] * 0x9E3779B97F4A7C15u)) * 0x9E3779B97F4A7C15u;
        size_t at = (size_t)(hash >> 40) & (places - 1);
        int probes = 0;
        for (; place[at] && !repeats; at = (at + 1) & (places - 1))
            repeats = !memcmp(all + (place[at] - 1) * KEY, words, KEY) || ++probes > MOST_PROBES;
        place[at] = (uint16_t)(row + 1);
    }
    PyMem_Free(place);
    PyBuffer_Release(&keys);
    return PyBool_FromLong(repeats);
}

/* -- what is decided and what is kept ------------------------------------------------------------ */

/* repeats(seen, known, own, repeat): a byte a row, `repeat` where it was seen, and the rows where it
   was not, as i64. None where a fingerprint differs. */
static PyObject *repeats(PyObject *module, PyObject *args) {
    (void)module;
    Py_buffer seen, known, own;
    unsigned char repeat;
    if (!PyArg_ParseTuple(args, "y*y*y*b", &seen, &known, &own, &repeat)) return NULL;
    PyObject *answer = NULL, *decisions = NULL, *runs = NULL;
    Py_ssize_t count = seen.len, new = 0, at = 0;
    if (known.len != count * 4 || own.len != count * 4) {
        PyErr_SetString(PyExc_ValueError, "no fingerprints of these rows");
        goto done;
    }
    decisions = PyByteArray_FromStringAndSize(NULL, count);
    runs = PyByteArray_FromStringAndSize(NULL, count * (Py_ssize_t)sizeof(int64_t));
    if (decisions == NULL || runs == NULL) goto done;
    const unsigned char *is_seen = seen.buf;
    const char *was = known.buf, *is = own.buf; /* of whatever alignment */
    unsigned char *decision = (unsigned char *)PyByteArray_AsString(decisions);
    int64_t *run = (int64_t *)PyByteArray_AsString(runs);
    for (; at < count && (!is_seen[at] || !memcmp(was + 4 * at, is + 4 * at, 4)); at++) {
        decision[at] = is_seen[at] ? repeat : 0;
        run[new] = at;
        new += !is_seen[at];
    }
    if (at < count) {
        Py_INCREF(Py_None);
        answer = Py_None;
    } else if (!PyByteArray_Resize(runs, new * (Py_ssize_t)sizeof(int64_t))) {
        answer = PyTuple_Pack(2, decisions, runs);
    }
done:
    Py_XDECREF(decisions);
    Py_XDECREF(runs);
    PyBuffer_Release(&seen);
    PyBuffer_Release(&known);
    PyBuffer_Release(&own);
    return answer;
}

static void put_u32(unsigned char *to, uint32_t number) {
    for (int byte = 0; byte < 4; byte++) to[byte] = (unsigned char)(number >> (24 - 8 * byte));
}

static int64_t offset_at(const Py_buffer *offsets, Py_ssize_t row) {
    int64_t offset;
    memcpy(&offset, (const char *)offsets->buf + row * 8, sizeof offset);
    return offset;
}

/* columns(keys, fingerprints, offsets): the least offset, the greatest, and as bytes the keys, the
   fingerprints (>u4) and how far each offset is above the least (>u4, if they are no further). */
static PyObject *columns(PyObject *module, PyObject *args) {
    (void)module;
    Py_buffer keys, prints, offsets;
    if (!PyArg_ParseTuple(args, "y*y*y*", &keys, &prints, &offsets)) return NULL;
    PyObject *answer = NULL, *packed = NULL;
    Py_ssize_t count = keys.len / KEY;
    if (!count || keys.len % KEY || prints.len != count * 4 || offsets.len != count * 8) {
        PyErr_SetString(PyExc_ValueError, "no keys, or no fingerprints and offsets of them");
        goto done;
    }
    packed = PyBytes_FromStringAndSize(NULL, count * (KEY + 8));
    if (packed == NULL) goto done;
    int64_t least = offset_at(&offsets, 0), greatest = least;
    for (Py_ssize_t row = 1; row < count; row++) {
        int64_t offset = offset_at(&offsets, row);
        if (offset < least) least = offset;
        if (offset > greatest) greatest = offset;
    }
    unsigned char *to = (unsigned char *)PyBytes_AsString(packed);
    memcpy(to, keys.buf, (size_t)keys.len);
    to += keys.len;
    for (Py_ssize_t row = 0; row < count; row++, to += 4) {
        uint32_t print;
        memcpy(&print, (const char *)prints.buf + row * 4, sizeof print);
        put_u32(to, print);
    }
    for (Py_ssize_t row = 0; row < count; row++, to += 4)
        put_u32(to, (uint32_t)((uint64_t)offset_at(&offsets, row) - (uint64_t)least));
    answer = Py_BuildValue("LLO", (long long)least, (long long)greatest, packed);
done:
    Py_XDECREF(packed);
    PyBuffer_Release(&keys);
    PyBuffer_Release(&prints);
    PyBuffer_Release(&offsets);
    return answer;
}

/* -- messages ------------------------------------------------------------------------------------ */

/* Bytes, numbers and text: no cycle leads through such an object, and the collector walks thousands
   of them in vain. Off its lists, an object is freed as ever, when its last reference goes. */
static void leave_collector(PyObject *object) {
    if (PyObject_GC_IsTracked(object)) PyObject_GC_UnTrack(object);
}

/* survey(messages, error, partition): what `partition` says of them, as a list, or once where it is
   the same of all. None where one has an error. The collector walks them no more. */
static PyObject *survey(PyObject *module, PyObject *args) {
    (void)module;
    PyObject *messages, *error_of, *partition_of, *first = NULL, *all = NULL;
    if (!PyArg_ParseTuple(args, "O!OO", &PyList_Type, &messages, &error_of, &partition_of))
        return NULL;
    Py_ssize_t count = PyList_Size(messages);
    for (Py_ssize_t at = 0; at < count; at++) {
        PyObject *message = PyList_GetItem(messages, at);
        if (message == NULL) goto failed;
        ask_for(messages, at + SOON, 2);
        leave_collector(message);
        PyObject *error = PyObject_CallFunctionObjArgs(error_of, message, NULL);
        if (error == NULL) goto failed;
        int is_fine = error == Py_None;
        Py_DECREF(error);
        if (!is_fine) {
            Py_XDECREF(first);
            Py_XDECREF(all);
            Py_RETURN_NONE;
        }
        PyObject *partition = PyObject_CallFunctionObjArgs(partition_of, message, NULL);
        if (partition == NULL) goto failed;
        if (first == NULL) {
            first = partition;
            continue;
        }
        if (all == NULL && partition != first) { /* a number below 257 is one object */
            all = PyList_New(count);
            for (Py_ssize_t before = 0; all != NULL && before < at; before++) {
                Py_INCREF(first);
                PyList_SetItem(all, before, first);
            }
            if (all == NULL) {
                Py_DECREF(partition);
                goto failed;
            }
        }
        if (all == NULL)
            Py_DECREF(partition);
        else
            PyList_SetItem(all, at, partition);
    }
    if (all != NULL) {
        Py_XDECREF(first);
        return all;
    }
    if (first != NULL) return first;
    Py_RETURN_NONE;
failed:
    Py_XDECREF(first);
    Py_XDECREF(all);
    return NULL;
}

/* The value of the only header, if `name` is its name; borrowed. NULL with an exception, or without
   one where there is no such value. */
static PyObject *value_of_only(PyObject *headers, PyObject *name) {
    if (!PyList_CheckExact(headers) || PyList_Size(headers) != 1) return NULL;
    PyObject *header = PyList_GetItem(headers, 0);
    if (header == NULL || !PyTuple_CheckExact(header) || PyTuple_Size(header) != 2) return NULL;
    PyObject *found = PyTuple_GetItem(header, 0), *value = PyTuple_GetItem(header, 1);
    if (found == NULL || value == NULL || !PyUnicode_CheckExact(found)) return NULL;
    if (PyObject_RichCompareBool(found, name, Py_EQ) != 1) return NULL;
    leave_collector(header);
    leave_collector(headers);
    return value;
}

/* only_header(messages, read, name): of each message the value of its only header, as a list.
   None unless each has that one and no other; a number where `read` failed: that message's place. */
static PyObject *only_header(PyObject *module, PyObject *args) {
    (void)module;
    PyObject *messages, *read, *name;
    if (!PyArg_ParseTuple(args, "O!OU", &PyList_Type, &messages, &read, &name)) return NULL;
    Py_ssize_t count = PyList_Size(messages);
    PyObject *values = PyList_New(count);
    for (Py_ssize_t at = 0; values != NULL && at < count; at++) {
        ask_for(messages, at + SOON, 2);
        PyObject *message = PyList_GetItem(messages, at);
        if (message == NULL) {
            Py_DECREF(values);
            return NULL;
        }
        PyObject *headers = PyObject_CallFunctionObjArgs(read, message, NULL);
        if (headers == NULL) {
            Py_DECREF(values);
            if (!PyErr_ExceptionMatches(PyExc_SystemError)) return NULL;
            PyErr_Clear();
            return PyLong_FromSsize_t(at);
        }
        PyObject *value = value_of_only(headers, name);
        if (value == NULL) {
            Py_DECREF(headers);
            Py_DECREF(values);
            if (PyErr_Occurred()) return NULL;
            Py_RETURN_NONE;
        }
        Py_INCREF(value);
        PyList_SetItem(values, at, value);
        Py_DECREF(headers);
    }
    return values;
}

/* -- the module ---------------------------------------------------------------------------------- */

static PyMethodDef methods[] = {
    {"survey", survey, METH_VARARGS, "kafka: errors and partitions of messages"},
    {"only_header", only_header, METH_VARARGS, "kafka: MessageRecords.only_header"},
    {"uuid_keys", uuid_keys, METH_O, "keys.uuid_keys, as bytes"},
    {"fingerprints", fingerprints, METH_VARARGS, "identify._fingerprints, as u32"},
    {"find", find, METH_VARARGS, "KeyIndex: positions of keys in one table"},
    {"marked", marked, METH_VARARGS, "KeyIndex: fingerprints of keys in one table"},
    {"put", put, METH_VARARGS, "KeyIndex: keys into one table"},
    {"may_repeat", may_repeat, METH_O, "plan.may_repeat_inside"},
    {"repeats", repeats, METH_VARARGS, "plan: where all are new, or repeats of the same payload"},
    {"columns", columns, METH_VARARGS, "encoding: what a packed row holds behind its header"},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, "_native", "See native.py.", -1, methods, NULL, NULL, NULL, NULL,
};

PyMODINIT_FUNC PyInit__native(void) {
    prepare_digits();
    return PyModule_Create(&definition);
}
