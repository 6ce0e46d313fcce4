#include "net.h"

#include "base/bytes.h"
#include "base/own.h"
#include "nic/tap.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/wait.h>

enum {
    ARGUMENTS = 32 + 2 * GUEST_FORWARDS_MAX,
    WORDS_MAX = 4096,
    SOCKET_BUFFER = 4 * 1024 * 1024, /* of which a guest's TCP window is a part */
};

/* passt's command line. */
struct command {
    char *argv[ARGUMENTS];
    char texts[GUEST_FORWARDS_MAX][GUEST_ADDRESS_SIZE + 16];
    char fd[16], mtu[16];
};

static void add(struct command *command, const char *word)
{
    unsigned count = 0;
    while (command->argv[count])
        count++;
    command->argv[count] = (char *)word;
}

static void fill_command(struct command *command, const struct guest_nic *nic, int fd)
{
    *command = (struct command){0};
    snprintf(command->fd, sizeof command->fd, "%d", fd);
    const char *const words[] = {"passt", "--quiet", "--fd", command->fd};
    for (size_t i = 0; i < ARRAY_LEN(words); i++)
        add(command, words[i]);
    if (!nic->host_loopback)
        add(command, "--no-map-gw");
    if (nic->mtu) {
        snprintf(command->mtu, sizeof command->mtu, "%u", nic->mtu);
        add(command, "--mtu");
        add(command, command->mtu);
    }
    for (unsigned i = 0; i < nic->forward_count; i++) {
        const struct guest_forward *forward = &nic->forwards[i];
        snprintf(command->texts[i], sizeof command->texts[i], "%s%s%u:%u", forward->address,
                 *forward->address ? "/" : "", forward->host, forward->guest);
        add(command, forward->udp ? "-u" : "-t");
        add(command, command->texts[i]);
    }
}

/* In the child, between fork and exec: async-signal-safe calls only. A session of its own, so that
 * Ctrl-C is not for it. */
static void become_passt(char *const *argv, int fd, int words)
{
    sigset_t none;
    setsid();
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    int null = open("/dev/null", O_RDWR | O_CLOEXEC);
    dup2(null, STDIN_FILENO);
    dup2(null, STDOUT_FILENO);
    dup2(words, STDERR_FILENO);
    fcntl(fd, F_SETFD, 0);
    execvp(argv[0], argv);
    static const char message[] = "it is not installed; on Debian: apt install passt\n";
    if (write(STDERR_FILENO, message, sizeof message - 1) < 0)
        _exit(126);
    _exit(127);
}

static int start_passt(struct net *net, const struct guest_nic *nic, int fd, struct err *err)
{
    struct command command;
    int words[2];
    fill_command(&command, nic, fd);
    if (pipe2(words, O_CLOEXEC) < 0)
        return err_errno(err, errno, "passt");
    pid_t pid = fork();
    if (pid == 0)
        become_passt(command.argv, fd, words[1]);
    close(words[1]);
    if (pid < 0) {
        close(words[0]);
        return err_errno(err, errno, "passt");
    }
    net->helpers[net->helper_count].pid = pid;
    net->helpers[net->helper_count++].words = words[0];
    return 0;
}

/* passt drops the frames that do not fit into its socket, and sends them again when TCP's timeout
 * of two seconds is over; the usual 208 KiB hold three of the largest, and a guest's window many
 * more. Where we may not go past the machine's limit (net.core.wmem_max, which counts twice) it is
 * taken whole, which is enough for a guest that reads at all. */
static void widen(int fd)
{
    const int size = SOCKET_BUFFER;
    if (setsockopt(fd, SOL_SOCKET, SO_SNDBUFFORCE, &size, sizeof size) < 0)
        setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &size, sizeof size);
}

static int open_user(struct net *net, struct guest_nic *nic, struct err *err)
{
    int pair[2];
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) < 0)
        return err_errno(err, errno, "socket");
    widen(pair[1]);
    int r = start_passt(net, nic, pair[1], err);
    close(pair[1]);
    nic->fds[0] = pair[0];
    nic->fd_count = 1;
    return r;
}

static int open_tap(struct guest_nic *nic, struct err *err)
{
    unsigned count = max(nic->queues, 1u);
    int r = tap_open(nic->tap, count, nic->fds, err);
    if (r >= 0)
        nic->fd_count = count;
    return r;
}

/* A guest without a name is nobody that could come again. */
static int choose_mac(struct guest_nic *nic, const char *name, unsigned index, struct err *err)
{
    static const uint8_t none[6];
    uint8_t random[16];
    char text[2 * sizeof random + 1];
    if (memcmp(nic->mac, none, sizeof none) != 0)
        return 0;
    if (!name) {
        if (getrandom(random, sizeof random, 0) != sizeof random)
            return err_errno(err, errno, "random numbers");
        for (size_t i = 0; i < sizeof random; i++)
            snprintf(text + 2 * i, 3, "%02x", random[i]);
        name = text;
    }
    guest_nic_mac(name, index, nic->mac);
    return 0;
}

int net_open(struct net *net, struct guest_conf *conf, struct err *err)
{
    int r = 0;
    *net = (struct net){0};
    for (unsigned i = 0; r >= 0 && i < conf->nic_count; i++) {
        struct guest_nic *nic = &conf->nics[i];
        r = choose_mac(nic, conf->name, i, err);
        if (r >= 0)
            r = nic->net == GUEST_NET_TAP ? open_tap(nic, err) : open_user(net, nic, err);
    }
    if (r < 0)
        net_close(net, conf);
    return r;
}

bool net_has_descriptors(const struct guest_conf *conf)
{
    for (unsigned i = 0; i < conf->nic_count; i++)
        if (conf->nics[i].fd_count > 0 || conf->nics[i].unplugged)
            return true;
    return false;
}

void net_close(struct net *net, struct guest_conf *conf)
{
    for (unsigned i = 0; i < conf->nic_count; i++)
        while (conf->nics[i].fd_count > 0)
            close(conf->nics[i].fds[--conf->nics[i].fd_count]);
}

/* Whatever it has to say until it goes to the background or ends, on one line. */
static void read_words(int fd, char *ret_text, size_t size)
{
    size_t length = 0;
    ssize_t n = 1;
    while (n != 0 && length + 1 < size) {
        n = read(fd, ret_text + length, size - length - 1);
        if (n < 0 && errno != EINTR)
            break;
        length += n > 0 ? (size_t)n : 0;
    }
    ret_text[length] = '\0';
}

/* The last line that is about us: it says why. The others are about its log. */
static const char *last_words(char *text)
{
    const char *last = "it says nothing";
    char *rest = NULL;
    for (char *line = strtok_r(text, "\n", &rest); line; line = strtok_r(NULL, "\n", &rest))
        if (strncmp(line, "Failed to send ", 15) != 0)
            last = line;
    return last;
}

static int wait_for_one(pid_t pid, int words, struct err *err)
{
    char text[WORDS_MAX];
    int status = 0;
    read_words(words, text, sizeof text);
    close(words);
    while (waitpid(pid, &status, 0) < 0 && errno == EINTR)
        ;
    if (WIFEXITED(status) && WEXITSTATUS(status) == 0)
        return 0;
    return err_set(err, -ENETUNREACH, "user network: passt: %s", last_words(text));
}

int net_wait(struct net *net, struct err *err)
{
    int r = 0;
    for (unsigned i = 0; i < net->helper_count; i++) {
        struct err *one = r < 0 ? NULL : err;
        int answer = wait_for_one(net->helpers[i].pid, net->helpers[i].words, one);
        r = r < 0 ? r : answer;
    }
    net->helper_count = 0;
    return r;
}
