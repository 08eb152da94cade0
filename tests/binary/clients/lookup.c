/* What getaddrinfo tells a program: for each name one line with the addresses, sorted by the caller, or the error. */
#include <arpa/inet.h>
#include <netdb.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>

static const char *error(int code) {
    switch (code) {
    case EAI_NONAME: return "NONAME";
    case EAI_AGAIN: return "AGAIN";
    case EAI_FAIL: return "FAIL";
#ifdef EAI_NODATA
    case EAI_NODATA: return "NODATA";
#endif
    default: return gai_strerror(code);
    }
}

int main(int count, char **names) {
    for (int i = 1; i < count; i++) {
        struct addrinfo hints, *list = NULL;
        memset(&hints, 0, sizeof hints);
        hints.ai_socktype = SOCK_STREAM;
        int code = getaddrinfo(names[i], "443", &hints, &list);
        if (code) {
            printf("%s\n", error(code));
            continue;
        }
        for (struct addrinfo *at = list; at; at = at->ai_next) {
            char text[INET6_ADDRSTRLEN];
            const void *address = at->ai_family == AF_INET ? (void *)&((struct sockaddr_in *)at->ai_addr)->sin_addr
                                                           : (void *)&((struct sockaddr_in6 *)at->ai_addr)->sin6_addr;
            printf("%s ", inet_ntop(at->ai_family, address, text, sizeof text));
        }
        printf("\n");
        freeaddrinfo(list);
    }
    return 0;
}
