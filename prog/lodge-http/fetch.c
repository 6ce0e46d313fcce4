#include "fetch.h"

#include "answer.h"

#include "base/bytes.h"
#include "base/clock.h"
#include "base/own.h"

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <curl/curl.h>

enum {
    TRIES = 5,
    FIRST_PAUSE_MS = 250, /* then twice as long each time */
    REDIRECTS = 5,
    CONNECT_SECONDS = 10,
    ALL_SECONDS = 100, /* a request with all its tries; the client waits longer than that */
    SLOW_BYTES = 64,   /* a second, over this many seconds: it hangs */
    SLOW_SECONDS = 20,
};

struct fetcher {
    char *url, *ca_file;
    bool secure;
    pthread_mutex_t lock;
    char *place; /* where redirects led to; under the lock */
    struct answer version;
    atomic_bool stale;
};

/* One request and what came back. */
struct fetch {
    struct fetcher *fetcher;
    CURL *curl;
    struct answer answer;
    uint8_t *to;
    uint32_t length, got;
    char text[CURL_ERROR_SIZE];
};

/* What became of a try. */
enum verdict { GOOD, AGAIN, ELSEWHERE, CHANGED, RANGELESS, HOPELESS };

int fetcher_new(const char *url, const char *ca_file, struct fetcher **ret_fetcher, struct err *err)
{
    const char *host = strstr(url, "://");
    size_t authority = host ? strcspn(host + 3, "/?#") : 0;
    if (!authority)
        return err_set(err, -EINVAL, "it is no URL");
    if (memchr(host + 3, '@', authority))
        return err_set(err, -EINVAL, "a URL with a name or password in it is not taken");
    struct fetcher *fetcher = calloc(1, sizeof *fetcher);
    if (!fetcher)
        return err_set(err, -ENOMEM, "no memory");
    pthread_mutex_init(&fetcher->lock, NULL);
    fetcher->secure = (url[4] | 0x20) == 's';
    fetcher->url = strdup(url);
    fetcher->ca_file = ca_file ? strdup(ca_file) : NULL;
    if (!fetcher->url || (ca_file && !fetcher->ca_file)) {
        fetcher_free(fetcher);
        return err_set(err, -ENOMEM, "no memory");
    }
    *ret_fetcher = fetcher;
    return 0;
}

void fetcher_free(struct fetcher *fetcher)
{
    if (!fetcher)
        return;
    pthread_mutex_destroy(&fetcher->lock);
    free(fetcher->url);
    free(fetcher->ca_file);
    free(fetcher->place);
    free(fetcher);
}

/* --- curl's callbacks --- */

static size_t on_header(char *line, size_t one, size_t length, void *opaque)
{
    struct fetch *fetch = opaque;
    answer_line(&fetch->answer, line, length);
    return length;
}

/* Bytes of anything but what was asked for are not taken: that ends the transfer. */
static size_t on_body(char *bytes, size_t one, size_t length, void *opaque)
{
    struct fetch *fetch = opaque;
    long status = 0;
    curl_easy_getinfo(fetch->curl, CURLINFO_RESPONSE_CODE, &status);
    if (status != 206 || length > fetch->length - fetch->got)
        return 0;
    memcpy(fetch->to + fetch->got, bytes, length);
    fetch->got += (uint32_t)length;
    return length;
}

static bool set_options(struct fetch *fetch)
{
    CURL *curl = fetch->curl;
    const char *ca_file = fetch->fetcher->ca_file;
    return !curl_easy_setopt(curl, CURLOPT_PROTOCOLS_STR, "http,https") &&
           /* Once private, always private. */
           !curl_easy_setopt(curl, CURLOPT_REDIR_PROTOCOLS_STR,
                             fetch->fetcher->secure ? "https" : "http,https") &&
           !curl_easy_setopt(curl, CURLOPT_FOLLOWLOCATION, 1L) &&
           !curl_easy_setopt(curl, CURLOPT_MAXREDIRS, (long)REDIRECTS) &&
           !curl_easy_setopt(curl, CURLOPT_NOSIGNAL, 1L) &&
           !curl_easy_setopt(curl, CURLOPT_CONNECTTIMEOUT, (long)CONNECT_SECONDS) &&
           !curl_easy_setopt(curl, CURLOPT_LOW_SPEED_LIMIT, (long)SLOW_BYTES) &&
           !curl_easy_setopt(curl, CURLOPT_LOW_SPEED_TIME, (long)SLOW_SECONDS) &&
           !curl_easy_setopt(curl, CURLOPT_USERAGENT, "lodge") &&
           !curl_easy_setopt(curl, CURLOPT_HEADERFUNCTION, on_header) &&
           !curl_easy_setopt(curl, CURLOPT_HEADERDATA, fetch) &&
           !curl_easy_setopt(curl, CURLOPT_WRITEFUNCTION, on_body) &&
           !curl_easy_setopt(curl, CURLOPT_WRITEDATA, fetch) &&
           !curl_easy_setopt(curl, CURLOPT_ERRORBUFFER, fetch->text) &&
           (!ca_file || !curl_easy_setopt(curl, CURLOPT_CAINFO, ca_file));
}

int fetch_new(struct fetcher *fetcher, struct fetch **ret_fetch)
{
    struct fetch *fetch = calloc(1, sizeof *fetch);
    if (!fetch)
        return -ENOMEM;
    fetch->fetcher = fetcher;
    fetch->curl = curl_easy_init();
    if (!fetch->curl || !set_options(fetch)) {
        fetch_free(fetch);
        return -ENOMEM;
    }
    *ret_fetch = fetch;
    return 0;
}

void fetch_free(struct fetch *fetch)
{
    if (fetch)
        curl_easy_cleanup(fetch->curl);
    free(fetch);
}

/* --- one try --- */

static enum verdict judge_status(long status, const char *place, struct err *err)
{
    if (status == 200) {
        err_set(err, -EOPNOTSUPP,
                "the server sends whole files only (it does no range requests); copy the file here "
                "and use that");
        return RANGELESS;
    }
    if (status == 416) {
        err_set(err, -EIO, "the server has no such range: the file is shorter, or empty");
        return CHANGED;
    }
    err_set(err, -EIO, "the server answers %ld", status);
    if (status >= 500 || status == 429 || status == 408)
        return AGAIN;
    /* A link that redirects led to may have been good for a while only. */
    return place ? ELSEWHERE : HOPELESS;
}

/* A server's word on what it sent, against what it was asked for. */
static enum verdict judge_range(const struct fetch *fetch, uint64_t offset, struct err *err)
{
    const struct answer *answer = &fetch->answer;
    if (answer->encoded) {
        err_set(err, -EIO, "the server sends the range compressed");
        return HOPELESS;
    }
    if (!answer->ranged || answer->first != offset || answer->last != offset + fetch->length - 1 ||
        answer->last >= answer->size) {
        err_set(err, -EIO, "the server sends another range than it was asked for");
        return HOPELESS;
    }
    if (fetch->got != fetch->length) {
        err_set(err, -EIO, "the server sends %u bytes where it was asked for %u", fetch->got,
                fetch->length);
        return AGAIN;
    }
    return GOOD;
}

static enum verdict judge_version(const struct fetch *fetch, struct err *err)
{
    const struct answer *before = &fetch->fetcher->version;
    if (!before->ranged || answer_same(before, &fetch->answer))
        return GOOD;
    err_set(err, -ESTALE, "the file on the server has changed");
    return CHANGED;
}

static enum verdict judge(const struct fetch *fetch, CURLcode code, uint64_t offset,
                          const char *place, struct err *err)
{
    long status = 0;
    curl_easy_getinfo(fetch->curl, CURLINFO_RESPONSE_CODE, &status);
    bool cut = code == CURLE_WRITE_ERROR; /* by on_body() */
    if ((code == CURLE_OK || cut) && status != 206)
        return judge_status(status, place, err);
    /* A changed file may have a range of another length, and that is the better word. */
    if ((code == CURLE_OK || cut) && fetch->answer.ranged && judge_version(fetch, err) == CHANGED)
        return CHANGED;
    if (code == CURLE_OK || cut)
        return judge_range(fetch, offset, err);
    err_set(err, -EIO, "%s", *fetch->text ? fetch->text : curl_easy_strerror(code));
    switch (code) {
    case CURLE_PEER_FAILED_VERIFICATION:
    case CURLE_SSL_CACERT_BADFILE:
    case CURLE_UNSUPPORTED_PROTOCOL:
    case CURLE_URL_MALFORMAT:
    case CURLE_TOO_MANY_REDIRECTS: return HOPELESS;
    default: return AGAIN;
    }
}

static char *known_place(struct fetcher *fetcher)
{
    pthread_mutex_lock(&fetcher->lock);
    char *place = fetcher->place ? strdup(fetcher->place) : NULL;
    pthread_mutex_unlock(&fetcher->lock);
    return place;
}

static void remember_place(struct fetch *fetch)
{
    struct fetcher *fetcher = fetch->fetcher;
    char *place = NULL;
    curl_easy_getinfo(fetch->curl, CURLINFO_EFFECTIVE_URL, &place);
    char *copy = place && strcmp(place, fetcher->url) != 0 ? strdup(place) : NULL;
    pthread_mutex_lock(&fetcher->lock);
    free(fetcher->place);
    fetcher->place = copy;
    pthread_mutex_unlock(&fetcher->lock);
}

/* From where redirects led to before, so that all blocks come from one server of many. */
static enum verdict try_once(struct fetch *fetch, uint64_t offset, long seconds, struct err *err)
{
    char range[64];
    _cleanup_free_ char *place = known_place(fetch->fetcher);
    for (;;) {
        fetch->got = 0;
        fetch->answer = (struct answer){0};
        *fetch->text = '\0';
        snprintf(range, sizeof range, "%llu-%llu", (unsigned long long)offset,
                 (unsigned long long)(offset + fetch->length - 1));
        if (curl_easy_setopt(fetch->curl, CURLOPT_URL, place ? place : fetch->fetcher->url) ||
            curl_easy_setopt(fetch->curl, CURLOPT_RANGE, range) ||
            curl_easy_setopt(fetch->curl, CURLOPT_TIMEOUT, seconds)) {
            err_set(err, -ENOMEM, "no memory");
            return HOPELESS;
        }
        enum verdict verdict = judge(fetch, curl_easy_perform(fetch->curl), offset, place, err);
        if (verdict != ELSEWHERE) {
            if (verdict == GOOD)
                remember_place(fetch);
            return verdict;
        }
        free(take_ptr(place));
    }
}

static void pause_ms(unsigned ms)
{
    nanosleep(&(struct timespec){.tv_sec = ms / 1000, .tv_nsec = ms % 1000 * 1000000L}, NULL);
}

static int try_on(struct fetch *fetch, uint64_t offset, struct err *err)
{
    int64_t until = clock_ms() + ALL_SECONDS * 1000;
    unsigned pause = FIRST_PAUSE_MS;
    for (unsigned i = 0; i < TRIES; i++, pause *= 2) {
        if (i)
            pause_ms(pause);
        int64_t left = until - clock_ms();
        if (left <= 0)
            break;
        switch (try_once(fetch, offset, (long)(left + 999) / 1000, err)) {
        case GOOD: return 0;
        case AGAIN: continue;
        case CHANGED: return -ESTALE;
        case RANGELESS: return -EOPNOTSUPP;
        default: return -EIO;
        }
    }
    return -EIO;
}

int fetch_range(struct fetch *fetch, uint64_t offset, uint32_t length, uint8_t *to, struct err *err)
{
    struct fetcher *fetcher = fetch->fetcher;
    if (fetcher->stale)
        return err_set(err, -ESTALE, "the file on the server has changed");
    fetch->to = to;
    fetch->length = length;
    int r = try_on(fetch, offset, err);
    if (r == -ESTALE)
        fetcher->stale = true;
    return r;
}

int fetch_probe(struct fetch *fetch, uint64_t *ret_size, struct err *err)
{
    uint8_t byte;
    fetch->to = &byte;
    fetch->length = 1;
    int r = try_on(fetch, 0, err);
    if (r < 0)
        return r == -ESTALE ? -EIO : r;
    fetch->fetcher->version = fetch->answer;
    *ret_size = fetch->answer.size;
    return 0;
}
