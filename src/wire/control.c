#include "wire/control.h"

#include "base/bytes.h"

#include <errno.h>
#include <string.h>

enum { AT_LENGTH = 0, AT_TYPE = 4, AT_ZERO = 6 };

/* Of BALLOON: flags, three sizes, age, known, values. */
enum { BALLOON_SIZE = 4 + 3 * 8 + 4 + 4 + 8 * CONTROL_BALLOON_STATS };
enum { BALLOON_PRESENT = 1, BALLOON_DRIVER = 2 };

/* Of NICS: how many, and for each whether it is up and six counts. */
enum { NIC_SIZE = 4 + 6 * 8, NICS_SIZE = 4 + CONTROL_NICS_MAX * NIC_SIZE };

/* Payload of each type: a fixed part, then text where the type has one. */
static const struct layout {
    uint16_t type;
    uint16_t fixed;
    bool text;
} layouts[] = {
    {CONTROL_READY, 16 + CONTROL_NAME_MAX, true},
    {CONTROL_CONSOLE_OPENED, 5, false},
    {CONTROL_RESET, 0, false},
    {CONTROL_POWER_OFF, 0, false},
    {CONTROL_TRIPLE_FAULT, 0, true},
    {CONTROL_DEBUG_EXIT, 4, false},
    {CONTROL_PANICKED, 0, false},
    {CONTROL_ERROR, 0, true},
    {CONTROL_STATS, 25, true},
    {CONTROL_DONE, 9, false},
    {CONTROL_FAILED, 0, true},
    {CONTROL_CRASH_LOADED, 0, false},
    {CONTROL_WATCHDOG, 0, false},
    {CONTROL_BALLOON, BALLOON_SIZE, false},
    {CONTROL_FULL, 8, false},
    {CONTROL_NICS, NICS_SIZE, false},
    {CONTROL_POWER_BUTTON, 0, false},
    {CONTROL_RESET_NOW, 0, false},
    {CONTROL_PAUSE, 0, false},
    {CONTROL_RESUME, 0, false},
    {CONTROL_QUIT, 0, false},
    {CONTROL_CONSOLE_SIZE, 8, false},
    {CONTROL_STATS_ASK, 0, false},
    {CONTROL_SAVE, 2 * CONTROL_ID_SIZE + 1, false},
    {CONTROL_BALLOON_TARGET, 8, false},
    {CONTROL_BALLOON_ASK, 0, false},
    {CONTROL_NEW_GENERATION, 0, false},
    {CONTROL_LINK, 5, false},
    {CONTROL_HOLD, 0, false},
    {CONTROL_RELEASE, 0, false},
    {CONTROL_DISK, 4, false},
    {CONTROL_STACK, 4, true},
    {CONTROL_NICS_ASK, 0, false},
};

static const struct layout *layout_find(unsigned type)
{
    for (size_t i = 0; i < ARRAY_LEN(layouts); i++)
        if (layouts[i].type == type)
            return &layouts[i];
    return NULL;
}

static void balloon_write(const struct control_balloon *balloon, uint8_t *to)
{
    le32_write(to,
               (balloon->present ? BALLOON_PRESENT : 0u) | (balloon->driver ? BALLOON_DRIVER : 0u));
    le64_write(to + 4, balloon->target);
    le64_write(to + 12, balloon->actual);
    le64_write(to + 20, balloon->reported);
    le32_write(to + 28, balloon->age_ms);
    le32_write(to + 32, balloon->known);
    for (unsigned i = 0; i < CONTROL_BALLOON_STATS; i++)
        le64_write(to + 36 + 8 * i, balloon->stats[i]);
}

static bool balloon_read(const uint8_t *from, struct control_balloon *balloon)
{
    uint32_t flags = le32_read(from);
    balloon->present = flags & BALLOON_PRESENT;
    balloon->driver = flags & BALLOON_DRIVER;
    balloon->target = le64_read(from + 4);
    balloon->actual = le64_read(from + 12);
    balloon->reported = le64_read(from + 20);
    balloon->age_ms = le32_read(from + 28);
    balloon->known = le32_read(from + 32);
    for (unsigned i = 0; i < CONTROL_BALLOON_STATS; i++)
        balloon->stats[i] = le64_read(from + 36 + 8 * i);
    return flags <= (BALLOON_PRESENT | BALLOON_DRIVER) &&
           balloon->known < UINT32_C(1) << CONTROL_BALLOON_STATS;
}

static void nics_write(const struct control_message *message, uint8_t *to)
{
    memset(to, 0, NICS_SIZE);
    le32_write(to, message->nic_count);
    for (unsigned i = 0; i < message->nic_count; i++) {
        const struct control_nic *nic = &message->nics[i];
        const uint64_t counts[] = {nic->in_frames,  nic->in_bytes,  nic->in_dropped,
                                   nic->out_frames, nic->out_bytes, nic->out_dropped};
        uint8_t *at = to + 4 + i * NIC_SIZE;
        le32_write(at, nic->up);
        for (unsigned k = 0; k < ARRAY_LEN(counts); k++)
            le64_write(at + 4 + 8 * k, counts[k]);
    }
}

static bool nics_read(const uint8_t *from, struct control_message *message)
{
    message->nic_count = le32_read(from);
    if (message->nic_count > CONTROL_NICS_MAX)
        return false;
    for (unsigned i = 0; i < message->nic_count; i++) {
        struct control_nic *nic = &message->nics[i];
        uint64_t *const counts[] = {&nic->in_frames,  &nic->in_bytes,  &nic->in_dropped,
                                    &nic->out_frames, &nic->out_bytes, &nic->out_dropped};
        const uint8_t *at = from + 4 + i * NIC_SIZE;
        if (le32_read(at) > 1)
            return false;
        nic->up = le32_read(at);
        for (unsigned k = 0; k < ARRAY_LEN(counts); k++)
            *counts[k] = le64_read(at + 4 + 8 * k);
    }
    return true;
}

static void fixed_write(const struct control_message *message, uint8_t *to)
{
    switch (message->type) {
    case CONTROL_READY:
        le64_write(to, message->time_ns);
        memcpy(to + 8, message->engine, CONTROL_NAME_MAX);
        le64_write(to + 8 + CONTROL_NAME_MAX, message->began_ns);
        break;
    case CONTROL_CONSOLE_OPENED:
    case CONTROL_LINK:
        le32_write(to, message->port);
        to[4] = message->open;
        break;
    case CONTROL_DEBUG_EXIT: le32_write(to, message->code); break;
    case CONTROL_STATS:
        le64_write(to, message->instructions);
        le64_write(to + 8, message->resident);
        le64_write(to + 16, message->guest_resident);
        to[24] = (uint8_t)message->state;
        break;
    case CONTROL_FULL:
        le32_write(to, message->port);
        le32_write(to + 4, message->code);
        break;
    case CONTROL_DONE:
        le64_write(to, message->pages);
        to[8] = message->was_paused;
        break;
    case CONTROL_SAVE:
        memcpy(to, message->id, CONTROL_ID_SIZE);
        memcpy(to + CONTROL_ID_SIZE, message->parent, CONTROL_ID_SIZE);
        to[2 * CONTROL_ID_SIZE] = message->changes;
        break;
    case CONTROL_CONSOLE_SIZE:
        le32_write(to, message->port);
        le16_write(to + 4, message->cols);
        le16_write(to + 6, message->rows);
        break;
    case CONTROL_DISK:
    case CONTROL_STACK: le32_write(to, message->port); break;
    case CONTROL_BALLOON: balloon_write(&message->balloon, to); break;
    case CONTROL_NICS: nics_write(message, to); break;
    case CONTROL_BALLOON_TARGET: le64_write(to, message->bytes); break;
    default: break;
    }
}

/* False where a value is out of its range. */
static bool fixed_read(const uint8_t *from, struct control_message *message)
{
    switch (message->type) {
    case CONTROL_READY:
        message->time_ns = le64_read(from);
        memcpy(message->engine, from + 8, CONTROL_NAME_MAX);
        message->began_ns = le64_read(from + 8 + CONTROL_NAME_MAX);
        return memchr(message->engine, 0, CONTROL_NAME_MAX) != NULL;
    case CONTROL_CONSOLE_OPENED:
    case CONTROL_LINK:
        message->port = le32_read(from);
        message->open = from[4];
        return from[4] <= 1;
    case CONTROL_DEBUG_EXIT: message->code = le32_read(from); return message->code <= 255;
    case CONTROL_STATS:
        message->instructions = le64_read(from);
        message->resident = le64_read(from + 8);
        message->guest_resident = le64_read(from + 16);
        message->state = (enum control_state)from[24];
        return from[24] < CONTROL_STATE_MAX;
    case CONTROL_FULL:
        message->port = le32_read(from);
        message->code = le32_read(from + 4);
        return message->code <= INT32_MAX;
    case CONTROL_DONE:
        message->pages = le64_read(from);
        message->was_paused = from[8];
        return from[8] <= 1;
    case CONTROL_SAVE:
        memcpy(message->id, from, CONTROL_ID_SIZE);
        memcpy(message->parent, from + CONTROL_ID_SIZE, CONTROL_ID_SIZE);
        message->changes = from[2 * CONTROL_ID_SIZE];
        return from[2 * CONTROL_ID_SIZE] <= 1;
    case CONTROL_CONSOLE_SIZE:
        message->port = le32_read(from);
        message->cols = le16_read(from + 4);
        message->rows = le16_read(from + 6);
        return true;
    case CONTROL_DISK:
    case CONTROL_STACK: message->port = le32_read(from); return true;
    case CONTROL_BALLOON: return balloon_read(from, &message->balloon);
    case CONTROL_NICS: return nics_read(from, message);
    case CONTROL_BALLOON_TARGET: message->bytes = le64_read(from); return true;
    default: return true;
    }
}

size_t control_encode(const struct control_message *message, uint8_t ret_bytes[CONTROL_MESSAGE_MAX])
{
    const struct layout *layout = layout_find(message->type);
    uint8_t *payload = ret_bytes + CONTROL_HEADER_SIZE;
    size_t text = layout->text ? strnlen(message->text, CONTROL_TEXT_MAX) : 0;
    le32_write(ret_bytes + AT_LENGTH, (uint32_t)(layout->fixed + text));
    le16_write(ret_bytes + AT_TYPE, layout->type);
    le16_write(ret_bytes + AT_ZERO, 0);
    fixed_write(message, payload);
    memcpy(payload + layout->fixed, message->text, text);
    return CONTROL_HEADER_SIZE + layout->fixed + text;
}

int control_decode(const uint8_t *bytes, size_t size, struct control_message *ret_message,
                   struct err *err)
{
    if (size < CONTROL_HEADER_SIZE)
        return 0;
    uint32_t length = le32_read(bytes + AT_LENGTH);
    unsigned type = le16_read(bytes + AT_TYPE);
    const struct layout *layout = layout_find(type);
    if (!layout || le16_read(bytes + AT_ZERO))
        return err_set(err, -EBADMSG, "control message of unknown type %u", type);
    if (length < layout->fixed ||
        length - layout->fixed > (layout->text ? (uint32_t)CONTROL_TEXT_MAX : 0))
        return err_set(err, -EBADMSG, "control message of type %u has %u bytes", type, length);
    if (size - CONTROL_HEADER_SIZE < length)
        return 0;

    const uint8_t *payload = bytes + CONTROL_HEADER_SIZE;
    struct control_message message = {.type = (enum control_type)type};
    size_t text = length - layout->fixed;
    if (!fixed_read(payload, &message) || memchr(payload + layout->fixed, 0, text))
        return err_set(err, -EBADMSG, "control message of type %u has a value out of range", type);
    memcpy(message.text, payload + layout->fixed, text);
    *ret_message = message;
    return (int)(CONTROL_HEADER_SIZE + length);
}
