#include "base/library.h"

#include <dlfcn.h>
#include <errno.h>
#include <stdatomic.h>

static int load(struct library *library, struct err *err)
{
    void *handle = dlopen(library->file, RTLD_LAZY | RTLD_LOCAL);
    if (!handle)
        return err_set(err, -ENOENT, "cannot load %s: %s", library->file, dlerror());
    for (size_t i = 0; i < library->count; i++) {
        *library->symbols[i].at = dlsym(handle, library->symbols[i].name);
        if (!*library->symbols[i].at)
            return err_set(err, -ENOENT, "%s has no %s", library->file, library->symbols[i].name);
    }
    return 0; /* and it stays: nobody unloads it */
}

int library_load(struct library *library, struct err *err)
{
    if (atomic_load_explicit(&library->loaded, memory_order_acquire))
        return 0;
    pthread_mutex_lock(&library->lock);
    int r = library->loaded ? 0 : load(library, err);
    if (r >= 0)
        atomic_store_explicit(&library->loaded, true, memory_order_release);
    pthread_mutex_unlock(&library->lock);
    return r;
}
