/*
 * lockclient.c
 *	  Pairs of acquire and release at Redis or etcd: what pgbench is for PostgreSQL.
 *
 *	lockclient redis|etcd ADDRESS CLIENTS KEYS SECONDS
 *
 * ADDRESS is the path of a Unix socket, or a port of 127.0.0.1.  Each client picks
 * a random key out of KEYS, acquires it, releases it, and begins again; one request
 * at a time, each answered before the next.  Like pgbench -j 2, two threads serve all
 * clients.  Prints how many pairs there were, and how many a second.
 *
 * Redis: SET key token NX PX 30000, once more at once when another has it; released
 * by a script that deletes the key if it still has the token.  etcd: its own lock
 * service, with one lease for each client, granted before the time begins.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#define THREADS 2
#define BUFFER 65536

typedef enum State
{
	ACQUIRING,
	RELEASING,
	DONE
} State;

typedef struct Client
{
	int			fd;
	int			number;
	State		state;
	uint64_t	random;
	long		pairs;
	long		tokens;
	char		key[64];
	char		token[64];

	char		in[BUFFER];		/* what has been read and not looked at */
	int			nin;
	char		reply[BUFFER];	/* the answer */
	int			nreply;

	/* etcd */
	uint32_t	stream;
	uint64_t	lease;
	char		held[256];		/* the key that stands for the lock */
	int			nheld;
} Client;

static int	redis;
static int	nclients;
static long keys;
static double until;
static Client *clients;
static char script_sha[41];

static void
die(const char *format,...)
{
	va_list		args;

	va_start(args, format);
	fprintf(stderr, "lockclient: ");
	vfprintf(stderr, format, args);
	fprintf(stderr, "\n");
	va_end(args);
	exit(1);
}

static double
now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec + t.tv_nsec / 1e9;
}

static void
send_all(Client *c, const char *data, int length)
{
	while (length > 0)
	{
		ssize_t		n = send(c->fd, data, length, MSG_NOSIGNAL);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			die("send: %s", strerror(errno));
		data += n;
		length -= n;
	}
}

static void
connect_to(Client *c, const char *address)
{
	int			on = 1;

	if (address[0] == '/')
	{
		struct sockaddr_un a = {.sun_family = AF_UNIX};

		snprintf(a.sun_path, sizeof(a.sun_path), "%s", address);
		c->fd = socket(AF_UNIX, SOCK_STREAM, 0);
		if (connect(c->fd, (struct sockaddr *) &a, sizeof(a)) < 0)
			die("%s: %s", address, strerror(errno));
	}
	else
	{
		struct sockaddr_in a = {.sin_family = AF_INET,.sin_port = htons(atoi(address))};

		a.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
		c->fd = socket(AF_INET, SOCK_STREAM, 0);
		if (connect(c->fd, (struct sockaddr *) &a, sizeof(a)) < 0)
			die("port %s: %s", address, strerror(errno));
		setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
	}
}

static void
forget_input(Client *c, int length)
{
	c->nin -= length;
	memmove(c->in, c->in + length, c->nin);
}

/* ----------------------------------------------------------------
 *		Redis: RESP
 * ----------------------------------------------------------------
 */

static void
redis_send(Client *c, int nargs,...)
{
	char		out[1024];
	int			n = snprintf(out, sizeof(out), "*%d\r\n", nargs);
	va_list		args;

	va_start(args, nargs);
	for (int i = 0; i < nargs; i++)
	{
		const char *arg = va_arg(args, const char *);

		n += snprintf(out + n, sizeof(out) - n, "$%zu\r\n%s\r\n", strlen(arg), arg);
	}
	va_end(args);
	send_all(c, out, n);
}

/* Is the answer all there?  Then it is in "reply", a bulk string without its length. */
static int
redis_read(Client *c)
{
	char	   *end = memmem(c->in, c->nin, "\r\n", 2);
	int			line;
	int			bulk;

	if (end == NULL)
		return 0;
	line = end - c->in + 2;
	if (c->in[0] == '$' && (bulk = atoi(c->in + 1)) >= 0)
	{
		if (c->nin < line + bulk + 2)
			return 0;
		memcpy(c->reply, c->in + line, bulk);
		c->nreply = bulk;
		forget_input(c, line + bulk + 2);
	}
	else
	{
		memcpy(c->reply, c->in, line - 2);
		c->nreply = line - 2;
		forget_input(c, line);
	}
	c->reply[c->nreply] = '\0';
	if (c->reply[0] == '-')
		die("Redis says %s", c->reply);
	return 1;
}

/* ----------------------------------------------------------------
 *		etcd: gRPC, which is HTTP/2
 * ----------------------------------------------------------------
 */

enum
{
	FRAME_DATA = 0, FRAME_HEADERS = 1, FRAME_RST_STREAM = 3, FRAME_SETTINGS = 4,
	FRAME_PING = 6, FRAME_GOAWAY = 7, FRAME_WINDOW_UPDATE = 8
};

static int
put_frame(char *out, int type, int flags, uint32_t stream, const char *body, int length)
{
	char		head[9] = {length >> 16, length >> 8, length, type, flags,
	stream >> 24, stream >> 16, stream >> 8, stream};

	memcpy(out, head, 9);
	if (length > 0)
		memcpy(out + 9, body, length);
	return 9 + length;
}

static int
put_text(char *out, const char *text)
{
	out[0] = (char) strlen(text);
	memcpy(out + 1, text, strlen(text));
	return 1 + strlen(text);
}

static int
put_varint(char *out, uint64_t value)
{
	int			n = 0;

	for (; value >= 128; value >>= 7)
		out[n++] = (char) (value | 128);
	out[n++] = (char) value;
	return n;
}

static int
put_number(char *out, int field, uint64_t value)
{
	out[0] = (char) (field << 3);
	return 1 + put_varint(out + 1, value);
}

static int
put_bytes(char *out, int field, const char *bytes, int length)
{
	int			n = 1;

	out[0] = (char) (field << 3 | 2);
	n += put_varint(out + 1, length);
	memcpy(out + n, bytes, length);
	return n + length;
}

/* One request: headers and a message, on a stream of its own. */
static void
etcd_send(Client *c, const char *path, const char *message, int length)
{
	char		headers[512];
	char		data[512] = {0, 0, 0, length >> 8, length};
	char		out[2048];
	int			n = 0;

	headers[n++] = (char) 0x83; /* :method POST */
	headers[n++] = (char) 0x86; /* :scheme http */
	headers[n++] = 0x04;		/* :path */
	n += put_text(headers + n, path);
	headers[n++] = 0x01;		/* :authority */
	n += put_text(headers + n, "127.0.0.1");
	headers[n++] = 0x0f;		/* content-type */
	headers[n++] = 0x10;
	n += put_text(headers + n, "application/grpc");
	headers[n++] = 0x00;
	n += put_text(headers + n, "te");
	n += put_text(headers + n, "trailers");
	memcpy(data + 5, message, length);
	c->stream += c->stream == 0 ? 1 : 2;
	c->nreply = 0;
	n = put_frame(out, FRAME_HEADERS, 4 /* END_HEADERS */ , c->stream, headers, n);
	n += put_frame(out + n, FRAME_DATA, 1 /* END_STREAM */ , c->stream, data, length + 5);
	send_all(c, out, n);
}

/* Is the answer all there?  Then "reply" has the message, after five bytes. */
static int
etcd_read(Client *c)
{
	int			done = 0;

	while (!done && c->nin >= 9)
	{
		const unsigned char *f = (const unsigned char *) c->in;
		int			length = f[0] << 16 | f[1] << 8 | f[2];
		int			type = f[3];
		int			flags = f[4];
		char		out[32];

		if (length + 9 > BUFFER)
			die("a frame of %d bytes", length);
		if (c->nin < length + 9)
			break;
		switch (type)
		{
			case FRAME_DATA:
				if (c->nreply + length > BUFFER)
					die("a message that is too long");
				memcpy(c->reply + c->nreply, c->in + 9, length);
				c->nreply += length;
				break;
			case FRAME_HEADERS:
				done = flags & 1;
				break;
			case FRAME_SETTINGS:
				if (!(flags & 1))
					send_all(c, out, put_frame(out, FRAME_SETTINGS, 1, 0, NULL, 0));
				break;
			case FRAME_PING:
				if (!(flags & 1))
					send_all(c, out, put_frame(out, FRAME_PING, 1, 0, c->in + 9, 8));
				break;
			case FRAME_RST_STREAM:
			case FRAME_GOAWAY:
				die("etcd closes the stream or the connection");
		}
		forget_input(c, length + 9);
	}
	if (done && c->nreply < 5)
		die("etcd refuses a request");
	return done;
}

/* A field of the answer: its value, or where its bytes begin and how many they are. */
static uint64_t
etcd_field(const Client *c, int wanted, const char **bytes)
{
	const unsigned char *p = (const unsigned char *) c->reply + 5;
	const unsigned char *end = (const unsigned char *) c->reply + c->nreply;

	while (p < end)
	{
		int			tag = *p++;
		uint64_t	value = 0;

		for (int shift = 0; p < end; shift += 7)
		{
			value |= (uint64_t) (*p & 127) << shift;
			if (!(*p++ & 128))
				break;
		}
		if (tag >> 3 == wanted)
		{
			if (bytes != NULL)
				*bytes = (const char *) p;
			return value;
		}
		if ((tag & 7) == 2)
			p += value;
	}
	die("etcd's answer has no field %d", wanted);
	return 0;
}

/* ----------------------------------------------------------------
 *		Both
 * ----------------------------------------------------------------
 */

/* Read what there is; true when an answer is complete. */
static int
receive(Client *c)
{
	ssize_t		n = recv(c->fd, c->in + c->nin, BUFFER - c->nin, 0);

	if (n < 0 && errno == EINTR)
		return 0;
	if (n <= 0)
		die("the connection was closed");
	c->nin += n;
	return redis ? redis_read(c) : etcd_read(c);
}

static void
acquire(Client *c)
{
	char		message[256];
	int			n;

	if (redis)
	{
		redis_send(c, 6, "SET", c->key, c->token, "NX", "PX", "30000");
		return;
	}
	n = put_bytes(message, 1, c->key, strlen(c->key));
	n += put_number(message + n, 2, c->lease);
	etcd_send(c, "/v3lockpb.Lock/Lock", message, n);
}

static void
next_pair(Client *c)
{
	c->random ^= c->random << 13;
	c->random ^= c->random >> 7;
	c->random ^= c->random << 17;
	snprintf(c->key, sizeof(c->key), "%ld", (long) (c->random % keys) + 1);
	snprintf(c->token, sizeof(c->token), "%d-%ld", c->number, c->tokens++);
	c->state = ACQUIRING;
	acquire(c);
}

static void
release(Client *c)
{
	char		message[300];

	c->state = RELEASING;
	if (redis)
		redis_send(c, 5, "EVALSHA", script_sha, "1", c->key, c->token);
	else
		etcd_send(c, "/v3lockpb.Lock/Unlock", message, put_bytes(message, 1, c->held, c->nheld));
}

/* An answer is there. */
static void
go_on(Client *c)
{
	const char *held;

	if (c->state == RELEASING)
	{
		if (redis && strcmp(c->reply, ":1") != 0)
			die("a lock was lost: %s", c->reply);
		c->pairs++;
		if (now() < until)
			next_pair(c);
		else
			c->state = DONE;
	}
	else if (redis && strcmp(c->reply, "+OK") != 0)
	{
		if (now() < until)
			acquire(c);
		else
			c->state = DONE;
	}
	else
	{
		if (!redis)
		{
			c->nheld = etcd_field(c, 2, &held);
			if (c->nheld > (int) sizeof(c->held))
				die("a key of %d bytes", c->nheld);
			memcpy(c->held, held, c->nheld);
		}
		release(c);
	}
}

static void
set_up(Client *c, const char *address)
{
	connect_to(c, address);
	if (redis)
		redis_send(c, 3, "SCRIPT", "LOAD",
				   "if redis.call('get', KEYS[1]) == ARGV[1] then return redis.call('del', KEYS[1]) else return 0 end");
	else
	{
		char		out[64];
		char		window[4] = {0x3f, 0, 0, 0};

		send_all(c, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 24);
		send_all(c, out, put_frame(out, FRAME_SETTINGS, 0, 0, NULL, 0));
		send_all(c, out, put_frame(out, FRAME_WINDOW_UPDATE, 0, 0, window, 4));
		etcd_send(c, "/etcdserverpb.Lease/LeaseGrant", out, put_number(out, 1, 600));
	}
	while (!receive(c))
		;
	if (redis)
		snprintf(script_sha, sizeof(script_sha), "%.40s", c->reply);
	else
		c->lease = etcd_field(c, 2, NULL);
}

static void *
serve(void *argument)
{
	int			first = (int) (intptr_t) argument;
	struct pollfd *fds = calloc(nclients, sizeof(struct pollfd));
	Client	  **mine = calloc(nclients, sizeof(Client *));

	for (int i = first; i < nclients; i += THREADS)
		next_pair(&clients[i]);
	for (;;)
	{
		int			n = 0;

		for (int i = first; i < nclients; i += THREADS)
		{
			if (clients[i].state == DONE)
				continue;
			mine[n] = &clients[i];
			fds[n].fd = clients[i].fd;
			fds[n++].events = POLLIN;
		}
		if (n == 0)
			return NULL;
		if (poll(fds, n, -1) < 0 && errno != EINTR)
			die("poll: %s", strerror(errno));
		for (int i = 0; i < n; i++)
		{
			if (fds[i].revents != 0 && receive(mine[i]))
				go_on(mine[i]);
		}
	}
}

int
main(int argc, char **argv)
{
	pthread_t	threads[THREADS];
	double		begin;
	double		took;
	long		pairs = 0;

	if (argc != 6)
		die("usage: lockclient redis|etcd ADDRESS CLIENTS KEYS SECONDS");
	redis = strcmp(argv[1], "redis") == 0;
	nclients = atoi(argv[3]);
	keys = atol(argv[4]);
	clients = calloc(nclients, sizeof(Client));
	for (int i = 0; i < nclients; i++)
	{
		clients[i].number = i;
		clients[i].random = UINT64_C(0x9E3779B97F4A7C15) * (i + 1) ^ (uint64_t) time(NULL) << 20;
		set_up(&clients[i], argv[2]);
	}
	begin = now();
	until = begin + atof(argv[5]);
	for (int i = 0; i < THREADS; i++)
		pthread_create(&threads[i], NULL, serve, (void *) (intptr_t) i);
	for (int i = 0; i < THREADS; i++)
		pthread_join(threads[i], NULL);
	took = now() - begin;
	for (int i = 0; i < nclients; i++)
		pairs += clients[i].pairs;
	printf("%ld %.1f\n", pairs, pairs / took);
	return 0;
}
