/*
 * delayproxy.c
 *	  A proxy between a client and a server that stands for a bad network.
 *
 *	delayproxy [-d ROUND_TRIP] [-c CONTROL] LISTEN TARGET
 *	delayproxy -t CONTROL COMMAND
 *
 * LISTEN and TARGET are the path of a Unix socket, or a port of 127.0.0.1.  What
 * comes in goes out half of ROUND_TRIP (milliseconds, 0) later, in both directions:
 * chunks that come one after the other wait at the same time, and stay in order.
 *
 * Commands come over the Unix socket CONTROL, a line each; the answer, also a line,
 * is sent when the command is in force, and begins with "ok" or "error".  With -t
 * one is sent, and the answer printed.
 *
 *	delay ROUND_TRIP	for what comes in from now on
 *	hang				forward nothing, neither data nor an end, until "go"
 *	go					forward again, what has waited first, and accept again
 *	drop				close all connections
 *	down				drop, and refuse new ones until "go"
 *	halfclose client	end the stream to the clients, or to the server; what else
 *	halfclose server	is on its way in that direction is lost
 *	on request ACTION[/TIMES] TEXT
 *	on reply ACTION[/TIMES] TEXT
 *						when TEXT comes from a client, or from the server, do ACTION
 *						instead of forwarding it and what came with it: hang, drop,
 *						halfclose (towards the side that waits for it), all three for
 *						this connection only; hangall or down for all; TIMES is how
 *						often, else always
 *	off					forget all these
 *	status				numbers: connections, hanging ones, how often an "on" fired
 *						since the last "off"; forwarding, hanging or down
 *	quit
 *
 * SIGUSR1 is hang, SIGUSR2 go, SIGHUP drop, SIGTERM quit.  A TEXT is found also where
 * it is split, but then its beginning has gone out.  A prepared statement's request has
 * no text; what the server has done is in the command tag of its reply, for example
 * "PREPARE TRANSACTION".
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#define CHUNK 16384
#define QUEUED_MAX (4 * 1024 * 1024)	/* per direction; then it is not read */
#define TEXT_MAX 200
#define TRAPS_MAX 16

typedef enum Action
{
	FORWARD,
	HANG,
	DROP,
	HALFCLOSE,
	HANGALL,
	DOWN
} Action;

static const char *const action_names[] = {"", "hang", "drop", "halfclose", "hangall", "down"};

enum
{
	REQUEST,					/* from the client, side 0, to the server, side 1 */
	REPLY
};

typedef struct Chunk
{
	struct Chunk *next;
	int64_t		due;			/* nanoseconds, monotonic */
	Action		action;
	int			length;			/* 0: the end of the stream */
	int			sent;
	char		data[];
} Chunk;

/* One direction of a connection; side i is where flow i comes from. */
typedef struct Flow
{
	Chunk	   *head;
	Chunk	   *tail;
	int			queued;
	int64_t		last_due;
	bool		read_all;		/* the source has nothing more for us */
	bool		over;			/* the destination gets nothing more */
	bool		blocked;		/* the destination takes nothing now */
	char		last[TEXT_MAX]; /* the end of what has been read */
	int			nlast;
} Flow;

typedef struct Pair Pair;

typedef enum SourceKind
{
	LISTENER,
	CONTROL_LISTENER,
	CONTROL,
	TIMER,
	SIGNALS,
	SIDE
} SourceKind;

/* What an event belongs to. */
typedef struct Source
{
	SourceKind	kind;
	int			fd;
	uint32_t	events;			/* that are waited for */
	Pair	   *pair;
	int			side;
	char		line[512];
	int			nline;
} Source;

struct Pair
{
	Pair	   *next;
	Source		side[2];
	Flow		flow[2];
	bool		hangs;
	bool		dead;
};

typedef struct Trap
{
	int			direction;
	Action		action;
	int			times;			/* -1: always */
	char		text[TEXT_MAX];
} Trap;

static const char *listen_address;
static const char *target_address;
static const char *control_address;
static int	epoll;
static Source listener = {.kind = LISTENER,.fd = -1};
static Source control_listener = {.kind = CONTROL_LISTENER,.fd = -1};
static Source timer = {.kind = TIMER,.fd = -1};
static Source signals = {.kind = SIGNALS,.fd = -1};
static Pair *pairs;
static int64_t delay;			/* one way */
static bool hanging;
static Trap traps[TRAPS_MAX];
static int	ntraps;
static long fired;

static void
die(const char *format,...)
{
	va_list		args;

	va_start(args, format);
	fprintf(stderr, "delayproxy: ");
	vfprintf(stderr, format, args);
	fprintf(stderr, "\n");
	va_end(args);
	exit(1);
}

static int64_t
now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * INT64_C(1000000000) + t.tv_nsec;
}

/* ----------------------------------------------------------------
 *		Sockets
 * ----------------------------------------------------------------
 */

static socklen_t
parse_address(const char *text, struct sockaddr_storage *address)
{
	memset(address, 0, sizeof(*address));
	if (text[0] == '/')
	{
		struct sockaddr_un *a = (struct sockaddr_un *) address;

		if (strlen(text) >= sizeof(a->sun_path))
			die("%s is too long a name for a socket", text);
		a->sun_family = AF_UNIX;
		strcpy(a->sun_path, text);
		return sizeof(*a);
	}
	else
	{
		struct sockaddr_in *a = (struct sockaddr_in *) address;

		if (atoi(text) <= 0)
			die("%s is neither a path nor a port", text);
		a->sin_family = AF_INET;
		a->sin_port = htons(atoi(text));
		a->sin_addr.s_addr = htonl(INADDR_LOOPBACK);
		return sizeof(*a);
	}
}

static int
listen_at(const char *text)
{
	struct sockaddr_storage address;
	socklen_t	length = parse_address(text, &address);
	int			fd = socket(address.ss_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	int			on = 1;

	if (text[0] == '/')
		unlink(text);
	else
		setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
	if (bind(fd, (struct sockaddr *) &address, length) < 0 || listen(fd, 128) < 0)
		die("%s: %s", text, strerror(errno));
	return fd;
}

static int
connect_to(const char *text)
{
	struct sockaddr_storage address;
	socklen_t	length = parse_address(text, &address);
	int			fd = socket(address.ss_family, SOCK_STREAM | SOCK_CLOEXEC, 0);

	if (connect(fd, (struct sockaddr *) &address, length) < 0)
	{
		close(fd);
		return -1;
	}
	return fd;
}

/* Nagle's algorithm would add a delay of its own. */
static void
set_options(int fd)
{
	int			on = 1;

	fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK);
	setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
}

/* A socket that nothing is expected of must be out of the set: an error or a hangup is
 * reported all the same, again and again. */
static void
expect(Source *source, uint32_t events)
{
	struct epoll_event e = {.events = events,.data.ptr = source};
	int			operation = EPOLL_CTL_MOD;

	if (events == source->events)
		return;
	if (source->events == 0)
		operation = EPOLL_CTL_ADD;
	else if (events == 0)
		operation = EPOLL_CTL_DEL;
	if (epoll_ctl(epoll, operation, source->fd, &e) < 0)
		die("epoll_ctl: %s", strerror(errno));
	source->events = events;
}

static void
open_listener(void)
{
	if (listener.fd >= 0)
		return;
	listener.fd = listen_at(listen_address);
	listener.events = 0;
	expect(&listener, EPOLLIN);
}

static void
close_listener(void)
{
	if (listener.fd < 0)
		return;
	close(listener.fd);
	listener.fd = -1;
	if (listen_address[0] == '/')
		unlink(listen_address);
}

/* ----------------------------------------------------------------
 *		Connections
 * ----------------------------------------------------------------
 */

static void
accept_client(void)
{
	int			fd = accept4(listener.fd, NULL, NULL, SOCK_CLOEXEC);
	int			server;
	Pair	   *pair;

	if (fd < 0)
		return;
	server = connect_to(target_address);
	if (server < 0)
	{
		close(fd);
		return;
	}
	set_options(fd);
	set_options(server);
	pair = calloc(1, sizeof(Pair));
	for (int i = 0; i < 2; i++)
	{
		pair->side[i].kind = SIDE;
		pair->side[i].fd = i == 0 ? fd : server;
		pair->side[i].pair = pair;
		pair->side[i].side = i;
	}
	pair->next = pairs;
	pairs = pair;
}

static void
forget_chunks(Flow *flow)
{
	Chunk	   *next;

	for (Chunk *chunk = flow->head; chunk != NULL; chunk = next)
	{
		next = chunk->next;
		free(chunk);
	}
	flow->head = flow->tail = NULL;
	flow->queued = 0;
}

/* Closes; the struct stays until no event can refer to it. */
static void
drop(Pair *pair)
{
	if (pair->dead)
		return;
	pair->dead = true;
	for (int i = 0; i < 2; i++)
	{
		forget_chunks(&pair->flow[i]);
		close(pair->side[i].fd);
	}
}

static void
drop_all(void)
{
	for (Pair *pair = pairs; pair != NULL; pair = pair->next)
		drop(pair);
}

static void
remove_dead(void)
{
	Pair	  **link = &pairs;

	while (*link != NULL)
	{
		Pair	   *pair = *link;

		if (pair->dead)
		{
			*link = pair->next;
			free(pair);
		}
		else
			link = &pair->next;
	}
}

/* Ends a direction; with both a connection ends. */
static void
end_flow(Pair *pair, int direction)
{
	Flow	   *flow = &pair->flow[direction];

	forget_chunks(flow);
	if (!flow->over)
		shutdown(pair->side[1 - direction].fd, SHUT_WR);
	flow->over = flow->read_all = true;
	if (pair->flow[1 - direction].over)
		drop(pair);
}

/* Does what has just been read complete a TEXT?  Then what is to be done. */
static Action
find_trap(Flow *flow, int direction, const char *data, int length)
{
	char		both[TEXT_MAX + CHUNK];
	int			nboth = flow->nlast + length;
	Action		action = FORWARD;

	memcpy(both, flow->last, flow->nlast);
	memcpy(both + flow->nlast, data, length);
	for (int i = 0; i < ntraps && action == FORWARD; i++)
	{
		Trap	   *trap = &traps[i];
		int			ntext = strlen(trap->text);
		/* not what has been found before */
		int			skip = flow->nlast > ntext - 1 ? flow->nlast - (ntext - 1) : 0;

		if (trap->direction != direction || trap->times == 0 ||
			memmem(both + skip, nboth - skip, trap->text, ntext) == NULL)
			continue;
		if (trap->times > 0)
			trap->times--;
		fired++;
		action = trap->action;
	}
	flow->nlast = nboth < TEXT_MAX - 1 ? nboth : TEXT_MAX - 1;
	memcpy(flow->last, both + nboth - flow->nlast, flow->nlast);
	return action;
}

static void
receive(Pair *pair, int direction)
{
	Flow	   *flow = &pair->flow[direction];
	char		data[CHUNK];
	ssize_t		n = recv(pair->side[direction].fd, data, sizeof(data), 0);
	Chunk	   *chunk;

	if (n < 0 && (errno == EAGAIN || errno == EINTR))
		return;
	if (n <= 0)
	{
		n = 0;
		flow->read_all = true;
	}
	chunk = malloc(sizeof(Chunk) + n);
	chunk->next = NULL;
	chunk->action = n > 0 ? find_trap(flow, direction, data, n) : FORWARD;
	chunk->due = now() + delay;
	if (chunk->due < flow->last_due)
		chunk->due = flow->last_due;
	flow->last_due = chunk->due;
	chunk->length = n;
	chunk->sent = 0;
	memcpy(chunk->data, data, n);
	if (flow->tail != NULL)
		flow->tail->next = chunk;
	else
		flow->head = chunk;
	flow->tail = chunk;
	flow->queued += n;
}

/* Does what a chunk is a sign for; false if it is to be forwarded now. */
static bool
act(Pair *pair, int direction, Chunk *chunk)
{
	Action		action = chunk->action;

	chunk->action = FORWARD;
	switch (action)
	{
		case FORWARD:
			return false;
		case HANG:
			pair->hangs = true;
			break;
		case HANGALL:
			hanging = true;
			break;
		case DROP:
			drop(pair);
			break;
		case DOWN:
			drop_all();
			close_listener();
			break;
		case HALFCLOSE:
			end_flow(pair, direction);
			break;
	}
	return true;
}

/* Forwards what is due. */
static void
forward(Pair *pair, int direction, int64_t time)
{
	Flow	   *flow = &pair->flow[direction];

	while (!pair->dead && !pair->hangs && !hanging && !flow->blocked &&
		   flow->head != NULL && flow->head->due <= time)
	{
		Chunk	   *chunk = flow->head;
		ssize_t		n;

		if (act(pair, direction, chunk))
			return;
		if (chunk->length == 0)
		{
			end_flow(pair, direction);
			return;
		}
		n = send(pair->side[1 - direction].fd, chunk->data + chunk->sent, chunk->length - chunk->sent, MSG_NOSIGNAL);
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0 && errno == EAGAIN)
		{
			flow->blocked = true;
			return;
		}
		if (n < 0)
		{
			/* It has closed.  What it had said before is still to be forwarded. */
			end_flow(pair, direction);
			return;
		}
		chunk->sent += n;
		if (chunk->sent < chunk->length)
			continue;
		flow->queued -= chunk->length;
		flow->head = chunk->next;
		if (flow->head == NULL)
			flow->tail = NULL;
		free(chunk);
	}
}

/* Forwards all that is due, and sets what to wait for. */
static void
forward_all(void)
{
	int64_t		time = now();
	int64_t		next = 0;
	struct itimerspec when = {0};

	for (Pair *pair = pairs; pair != NULL; pair = pair->next)
	{
		forward(pair, REQUEST, time);
		forward(pair, REPLY, time);
	}
	remove_dead();
	for (Pair *pair = pairs; pair != NULL; pair = pair->next)
	{
		bool		still = pair->hangs || hanging;

		for (int i = 0; i < 2; i++)
		{
			Flow	   *in = &pair->flow[i];
			Flow	   *out = &pair->flow[1 - i];
			uint32_t	events = 0;

			if (!still && !in->read_all && in->queued < QUEUED_MAX)
				events |= EPOLLIN;
			if (!still && out->blocked)
				events |= EPOLLOUT;
			expect(&pair->side[i], events);
			if (!still && !in->blocked && in->head != NULL && (next == 0 || in->head->due < next))
				next = in->head->due;
		}
	}
	when.it_value.tv_sec = next / 1000000000;
	when.it_value.tv_nsec = next % 1000000000;
	timerfd_settime(timer.fd, TFD_TIMER_ABSTIME, &when, NULL);
}

/* ----------------------------------------------------------------
 *		Commands
 * ----------------------------------------------------------------
 */

static void
quit(void)
{
	close_listener();
	if (control_address != NULL)
		unlink(control_address);
	exit(0);
}

static void
go(void)
{
	hanging = false;
	for (Pair *pair = pairs; pair != NULL; pair = pair->next)
		pair->hangs = false;
	open_listener();
}

/* "request|reply ACTION[/TIMES] TEXT" */
static bool
set_trap(const char *arguments)
{
	char		direction[16];
	char		action[16];
	Trap	   *trap = &traps[ntraps];
	char	   *times;
	int			n = 0;

	if (sscanf(arguments, "%15s %15s %n", direction, action, &n) != 2 || n == 0 ||
		arguments[n] == '\0' || strlen(arguments + n) >= TEXT_MAX || ntraps == TRAPS_MAX)
		return false;
	if (strcmp(direction, "request") == 0)
		trap->direction = REQUEST;
	else if (strcmp(direction, "reply") == 0)
		trap->direction = REPLY;
	else
		return false;
	trap->times = -1;
	times = strchr(action, '/');
	if (times != NULL)
	{
		*times++ = '\0';
		trap->times = atoi(times);
		if (trap->times <= 0)
			return false;
	}
	for (trap->action = HANG; trap->action <= DOWN; trap->action++)
	{
		if (strcmp(action, action_names[trap->action]) == 0)
		{
			strcpy(trap->text, arguments + n);
			ntraps++;
			return true;
		}
	}
	return false;
}

static void
halfclose_all(int direction)
{
	for (Pair *pair = pairs; pair != NULL; pair = pair->next)
	{
		if (!pair->dead)
			end_flow(pair, direction);
	}
}

static void
obey(const char *line, char *answer, size_t size)
{
	int			nconnections = 0;
	int			nhanging = 0;

	snprintf(answer, size, "ok\n");
	if (strncmp(line, "delay ", 6) == 0)
		delay = atof(line + 6) * 1000000 / 2;
	else if (strcmp(line, "hang") == 0)
		hanging = true;
	else if (strcmp(line, "go") == 0)
		go();
	else if (strcmp(line, "drop") == 0)
		drop_all();
	else if (strcmp(line, "down") == 0)
	{
		drop_all();
		close_listener();
	}
	else if (strcmp(line, "halfclose client") == 0)
		halfclose_all(REPLY);
	else if (strcmp(line, "halfclose server") == 0)
		halfclose_all(REQUEST);
	else if (strncmp(line, "on ", 3) == 0 && set_trap(line + 3))
		;
	else if (strcmp(line, "off") == 0)
	{
		ntraps = 0;
		fired = 0;
	}
	else if (strcmp(line, "status") == 0)
	{
		for (Pair *pair = pairs; pair != NULL; pair = pair->next)
		{
			nconnections += !pair->dead;
			nhanging += !pair->dead && (pair->hangs || hanging);
		}
		snprintf(answer, size, "ok connections=%d hanging=%d fired=%ld %s\n", nconnections, nhanging, fired,
				 hanging ? "hanging" : listener.fd < 0 ? "down" : "forwarding");
	}
	else if (strcmp(line, "quit") != 0)
		snprintf(answer, size, "error: unknown command: %.200s\n", line);
}

static void
accept_control(void)
{
	int			fd = accept4(control_listener.fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
	Source	   *source;

	if (fd < 0)
		return;
	source = calloc(1, sizeof(Source));
	source->kind = CONTROL;
	source->fd = fd;
	expect(source, EPOLLIN);
}

static void
receive_commands(Source *source)
{
	ssize_t		n = recv(source->fd, source->line + source->nline, sizeof(source->line) - source->nline, 0);
	char	   *end;

	if (n < 0 && (errno == EAGAIN || errno == EINTR))
		return;
	if (n <= 0)
	{
		close(source->fd);
		free(source);
		return;
	}
	source->nline += n;
	while ((end = memchr(source->line, '\n', source->nline)) != NULL)
	{
		char		answer[512];
		bool		quits;

		*end = '\0';
		quits = strcmp(source->line, "quit") == 0;
		obey(source->line, answer, sizeof(answer));
		/* before the answer it must be in force */
		forward_all();
		(void) !send(source->fd, answer, strlen(answer), MSG_NOSIGNAL);
		if (quits)
			quit();
		source->nline -= end + 1 - source->line;
		memmove(source->line, end + 1, source->nline);
	}
	if (source->nline == sizeof(source->line))
		source->nline = 0;
}

static void
receive_signal(void)
{
	struct signalfd_siginfo info;

	if (read(signals.fd, &info, sizeof(info)) != sizeof(info))
		return;
	switch (info.ssi_signo)
	{
		case SIGUSR1:
			hanging = true;
			break;
		case SIGUSR2:
			go();
			break;
		case SIGHUP:
			drop_all();
			break;
		default:
			quit();
	}
}

/* -t: waits up to 5 seconds until a proxy is there. */
static int
tell(const char *control, const char *command)
{
	int			fd;
	int			n = 0;
	char		answer[512];
	ssize_t		got;

	for (int tries = 0; (fd = connect_to(control)) < 0; tries++)
	{
		if (tries == 500)
			die("%s: %s", control, strerror(errno));
		usleep(10000);
	}
	dprintf(fd, "%s\n", command);
	while (n < (int) sizeof(answer) - 1 && (got = recv(fd, answer + n, sizeof(answer) - 1 - n, 0)) > 0)
	{
		n += got;
		if (answer[n - 1] == '\n')
			break;
	}
	answer[n] = '\0';
	fputs(answer, stdout);
	return strncmp(answer, "ok", 2) != 0;
}

static void
usage(void)
{
	die("usage: delayproxy [-d ROUND_TRIP] [-c CONTROL] LISTEN TARGET\n"
		"       delayproxy -t CONTROL COMMAND");
}

int
main(int argc, char **argv)
{
	sigset_t	set;
	int			option;
	const char *told = NULL;

	while ((option = getopt(argc, argv, "c:d:t:")) != -1)
	{
		switch (option)
		{
			case 'c':
				control_address = optarg;
				break;
			case 'd':
				delay = atof(optarg) * 1000000 / 2;
				break;
			case 't':
				told = optarg;
				break;
			default:
				usage();
		}
	}
	if (told != NULL && optind == argc - 1)
		return tell(told, argv[optind]);
	if (told != NULL || optind != argc - 2)
		usage();
	listen_address = argv[optind];
	target_address = argv[optind + 1];

	sigemptyset(&set);
	sigaddset(&set, SIGUSR1);
	sigaddset(&set, SIGUSR2);
	sigaddset(&set, SIGHUP);
	sigaddset(&set, SIGTERM);
	sigaddset(&set, SIGINT);
	sigprocmask(SIG_BLOCK, &set, NULL);
	epoll = epoll_create1(EPOLL_CLOEXEC);
	signals.fd = signalfd(-1, &set, SFD_NONBLOCK | SFD_CLOEXEC);
	expect(&signals, EPOLLIN);
	timer.fd = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
	expect(&timer, EPOLLIN);
	open_listener();
	if (control_address != NULL)
	{
		control_listener.fd = listen_at(control_address);
		expect(&control_listener, EPOLLIN);
	}

	for (;;)
	{
		struct epoll_event events[64];
		int			n;
		uint64_t	expirations;

		forward_all();
		n = epoll_wait(epoll, events, 64, -1);
		for (int i = 0; i < n; i++)
		{
			Source	   *source = events[i].data.ptr;

			switch (source->kind)
			{
				case LISTENER:
					if (source->fd >= 0)
						accept_client();
					break;
				case CONTROL_LISTENER:
					accept_control();
					break;
				case CONTROL:
					/* may free what the other events belong to; they come again */
					receive_commands(source);
					n = 0;
					break;
				case TIMER:
					(void) !read(source->fd, &expirations, sizeof(expirations));
					break;
				case SIGNALS:
					receive_signal();
					break;
				case SIDE:
					if (source->pair->dead)
						break;
					if (events[i].events & ~EPOLLIN)
						source->pair->flow[1 - source->side].blocked = false;
					if ((source->events & EPOLLIN) && (events[i].events & ~EPOLLOUT))
						receive(source->pair, source->side);
					break;
			}
		}
	}
}
