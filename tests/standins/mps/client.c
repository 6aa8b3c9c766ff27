/*
 * The client half of the stand-in for nvidia-cuda-mps-control: started without arguments it sends the lines of its
 * input to the daemon as one session; with arguments it becomes control.py, which lies beside it in ../lib under the
 * same name. In C because the agent starts one for every command. control.py tells what is said over the socket.
 */
#include <libgen.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

static int connect_to(const char *directory, const char *name) {
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    if ((size_t)snprintf(address.sun_path, sizeof address.sun_path, "%s/%s", directory, name) >= sizeof address.sun_path)
        return -1;
    int fd = socket(AF_UNIX, SOCK_SEQPACKET, 0);
    if (connect(fd, (struct sockaddr *)&address, sizeof address) == 0) return fd;
    close(fd);
    return -1;
}

static int become_control(char **argv) {
    static char self[4096], script[4096];
    ssize_t n = readlink("/proc/self/exe", self, sizeof self - 1);
    if (n < 0) return 1;
    snprintf(script, sizeof script, "%.2000s/../lib/nvidia-cuda-mps-control", dirname(self));
    execv(script, argv);
    perror(script);
    return 1;
}

int main(int argc, char **argv) {
    static char line[65536], reply[65536];
    if (argc > 1) return become_control(argv);
    const char *directory = getenv("CUDA_MPS_PIPE_DIRECTORY");
    const char *names[] = {"control", "control_privileged"};
    int root = geteuid() == 0;
    if (!directory) directory = "/tmp/nvidia-mps";
    int fd = connect_to(directory, names[root]);
    if (fd < 0) fd = connect_to(directory, names[!root]);
    if (fd < 0) {
        puts("Cannot find MPS control daemon process");
        return 1;
    }
    ssize_t hello = send(fd, "SESSION", 7, MSG_NOSIGNAL) < 0 ? 0 : recv(fd, reply, sizeof reply, 0);
    if (hello == 2 && memcmp(reply, "NO", 2) == 0) {
        puts("Cannot send command to MPS control daemon process");
        return 1;
    }
    while (fgets(line, sizeof line, stdin)) {
        if (hello <= 0 || strspn(line, " \t\r\n") == strlen(line)) continue;
        if (send(fd, line, strlen(line), MSG_NOSIGNAL) < 0) break;
        ssize_t n = recv(fd, reply, sizeof reply - 1, 0);
        if (n <= 0) break;
        fwrite(reply + 1, 1, (size_t)n - 1, stdout);
        fflush(stdout);
    }
    return 0;
}
