/*
 * twophaseclient.c
 *	  Two-phase commit as a careful person would write it with libpq: the floor.
 *
 *	twophaseclient steps|fused CLIENTS SECONDS LOCAL PARTICIPANT PARTICIPANT...
 *
 * LOCAL and PARTICIPANT are connection strings.  Each client is a thread with a
 * connection to each; it takes an amount from an account of the first participant for
 * each of the others, and writes that down locally, again and again:
 *
 *	1. local BEGIN, INSERT INTO transfer; on each participant BEGIN, UPDATE acc
 *	2. on each participant PREPARE TRANSACTION
 *	3. local INSERT INTO decision, COMMIT
 *	4. on each participant COMMIT PREPARED
 *
 * What is in one line is sent to all, each in one pipeline of prepared statements, and
 * then all answers are read.  "fused" sends 2 together with 1.
 *
 * It prints how many transactions there were, some before the time began included; how
 * many a second; the median latency in ms, and that until the decision (the end of 3).
 * Any answer but the expected one ends it.
 */
#include <pthread.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "libpq-fe.h"

#define ACCOUNTS 1000			/* of each client */
#define WARM_UP 3

typedef struct Client
{
	int			number;
	PGconn	  **conns;			/* the local one, then the participants */
	uint64_t	random;
	long		transactions;
	double		began;
	double		ended;
	long		nlatencies;
	long		size;
	float	   *latencies;
	float	   *decisions;
	pthread_t	thread;
} Client;

static bool fused;
static int	nparticipants;
static double seconds;
static char **conninfos;
static pthread_barrier_t barrier;

static void
die(const char *format,...)
{
	va_list		args;

	va_start(args, format);
	fprintf(stderr, "twophaseclient: ");
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
send_prepared(PGconn *conn, const char *name, int nvalues, const char *const *values)
{
	if (!PQsendQueryPrepared(conn, name, nvalues, values, NULL, NULL, 0))
		die("%s: %s", name, PQerrorMessage(conn));
}

static void
send_text(PGconn *conn, const char *text)
{
	if (!PQsendQueryParams(conn, text, 0, NULL, NULL, NULL, NULL, 0))
		die("%s: %s", text, PQerrorMessage(conn));
}

static void
send_end(PGconn *conn)
{
	if (!PQpipelineSync(conn) || PQflush(conn) < 0)
		die("%s", PQerrorMessage(conn));
}

/* The answer to the next of what was sent must be this. */
static void
expect(PGconn *conn, const char *tag)
{
	PGresult   *result = PQgetResult(conn);

	if (PQresultStatus(result) != PGRES_COMMAND_OK || strcmp(PQcmdStatus(result), tag) != 0)
		die("\"%s\" instead of %s: %s", result ? PQcmdStatus(result) : "", tag, PQresultErrorMessage(result));
	PQclear(result);
	result = PQgetResult(conn);
	if (result != NULL)
		die("too many answers");
}

static void
expect_end(PGconn *conn)
{
	PGresult   *result = PQgetResult(conn);

	if (PQresultStatus(result) != PGRES_PIPELINE_SYNC)
		die("no end of a pipeline: %s", PQresultErrorMessage(result));
	PQclear(result);
}

static void
prepare(PGconn *conn, const char *name, const char *text)
{
	PGresult   *result = PQprepare(conn, name, text, 0, NULL);

	if (PQresultStatus(result) != PGRES_COMMAND_OK)
		die("%s: %s", text, PQerrorMessage(conn));
	PQclear(result);
}

static void
set_up(Client *c)
{
	c->conns = calloc(nparticipants + 1, sizeof(PGconn *));
	for (int i = 0; i <= nparticipants; i++)
	{
		PGconn	   *conn = PQconnectdb(conninfos[i]);

		c->conns[i] = conn;
		if (PQstatus(conn) != CONNECTION_OK)
			die("%s", PQerrorMessage(conn));
		prepare(conn, "begin", "BEGIN");
		if (i == 0)
		{
			prepare(conn, "transfer", "INSERT INTO transfer (account, amount) VALUES ($1, $2)");
			prepare(conn, "decision", "INSERT INTO decision (gid) VALUES ($1)");
			prepare(conn, "commit", "COMMIT");
		}
		else
			prepare(conn, "update", "UPDATE acc SET bal = bal + $1 WHERE id = $2");
		PQenterPipelineMode(conn);
	}
}

/* PREPARE TRANSACTION or COMMIT PREPARED, for participant i. */
static void
send_second(Client *c, int i, const char *command, const char *gid)
{
	char		text[200];

	snprintf(text, sizeof(text), "%s '%s_%d'", command, gid, i);
	send_text(c->conns[i], text);
}

static void
transfer(Client *c, double *decided)
{
	PGconn	  **conns = c->conns;
	char		account[20];
	char		amount[20];
	char		taken[20];
	char		gid[100];
	int			sum;
	const char *given_values[] = {amount, account};
	const char *taken_values[] = {taken, account};
	const char *local_values[] = {account, taken + 1};
	const char *decision_values[] = {gid};

	c->random ^= c->random << 13;
	c->random ^= c->random >> 7;
	c->random ^= c->random << 17;
	sum = 1 + c->random / ACCOUNTS % 100;
	snprintf(account, sizeof(account), "%d", (int) (c->number * ACCOUNTS + 1 + c->random % ACCOUNTS));
	snprintf(amount, sizeof(amount), "%d", sum);
	snprintf(taken, sizeof(taken), "-%d", sum * (nparticipants - 1));
	snprintf(gid, sizeof(gid), "floor_%d_%d_%ld", (int) getpid(), c->number, c->transactions);

	send_prepared(conns[0], "begin", 0, NULL);
	send_prepared(conns[0], "transfer", 2, local_values);
	send_end(conns[0]);
	for (int i = 1; i <= nparticipants; i++)
	{
		send_prepared(conns[i], "begin", 0, NULL);
		send_prepared(conns[i], "update", 2, i == 1 ? taken_values : given_values);
		if (fused)
			send_second(c, i, "PREPARE TRANSACTION", gid);
		send_end(conns[i]);
	}
	expect(conns[0], "BEGIN");
	expect(conns[0], "INSERT 0 1");
	expect_end(conns[0]);
	for (int i = 1; i <= nparticipants; i++)
	{
		expect(conns[i], "BEGIN");
		expect(conns[i], "UPDATE 1");
		if (fused)
			expect(conns[i], "PREPARE TRANSACTION");
		expect_end(conns[i]);
	}

	for (int i = 1; i <= nparticipants && !fused; i++)
	{
		send_second(c, i, "PREPARE TRANSACTION", gid);
		send_end(conns[i]);
	}
	for (int i = 1; i <= nparticipants && !fused; i++)
	{
		expect(conns[i], "PREPARE TRANSACTION");
		expect_end(conns[i]);
	}

	send_prepared(conns[0], "decision", 1, decision_values);
	send_prepared(conns[0], "commit", 0, NULL);
	send_end(conns[0]);
	expect(conns[0], "INSERT 0 1");
	expect(conns[0], "COMMIT");
	expect_end(conns[0]);
	*decided = now();

	for (int i = 1; i <= nparticipants; i++)
	{
		send_second(c, i, "COMMIT PREPARED", gid);
		send_end(conns[i]);
	}
	for (int i = 1; i <= nparticipants; i++)
	{
		expect(conns[i], "COMMIT PREPARED");
		expect_end(conns[i]);
	}
	c->transactions++;
}

static void *
serve(void *argument)
{
	Client	   *c = argument;
	double		decided;

	for (int i = 0; i < WARM_UP; i++)
		transfer(c, &decided);
	pthread_barrier_wait(&barrier);
	c->began = c->ended = now();
	while (c->ended < c->began + seconds)
	{
		double		start = c->ended;

		transfer(c, &decided);
		c->ended = now();
		if (c->nlatencies == c->size)
		{
			c->size = c->size * 2 + 10000;
			c->latencies = realloc(c->latencies, c->size * sizeof(float));
			c->decisions = realloc(c->decisions, c->size * sizeof(float));
		}
		c->latencies[c->nlatencies] = (c->ended - start) * 1000;
		c->decisions[c->nlatencies++] = (decided - start) * 1000;
	}
	return NULL;
}

static int
compare_floats(const void *a, const void *b)
{
	float		x = *(const float *) a;
	float		y = *(const float *) b;

	return x < y ? -1 : x > y;
}

static float
median(float *values, long n)
{
	qsort(values, n, sizeof(float), compare_floats);
	return n > 0 ? values[n / 2] : 0;
}

int
main(int argc, char **argv)
{
	Client	   *clients;
	int			nclients;
	long		transactions = 0;
	long		n = 0;
	double		rate = 0;
	float	   *latencies;
	float	   *decisions;

	if (argc < 7 || (strcmp(argv[1], "steps") != 0 && strcmp(argv[1], "fused") != 0))
		die("usage: twophaseclient steps|fused CLIENTS SECONDS LOCAL PARTICIPANT PARTICIPANT...");
	fused = strcmp(argv[1], "fused") == 0;
	nclients = atoi(argv[2]);
	seconds = atof(argv[3]);
	conninfos = argv + 4;
	nparticipants = argc - 5;
	clients = calloc(nclients, sizeof(Client));
	pthread_barrier_init(&barrier, NULL, nclients);
	for (int i = 0; i < nclients; i++)
	{
		clients[i].number = i;
		clients[i].random = UINT64_C(0x9E3779B97F4A7C15) * (i + 1) ^ (uint64_t) time(NULL) << 20;
		set_up(&clients[i]);
	}
	for (int i = 0; i < nclients; i++)
		pthread_create(&clients[i].thread, NULL, serve, &clients[i]);
	for (int i = 0; i < nclients; i++)
		pthread_join(clients[i].thread, NULL);

	for (int i = 0; i < nclients; i++)
	{
		transactions += clients[i].transactions;
		n += clients[i].nlatencies;
		rate += clients[i].nlatencies / (clients[i].ended - clients[i].began);
	}
	latencies = calloc(n + 1, sizeof(float));
	decisions = calloc(n + 1, sizeof(float));
	n = 0;
	for (int i = 0; i < nclients; i++)
	{
		memcpy(latencies + n, clients[i].latencies, clients[i].nlatencies * sizeof(float));
		memcpy(decisions + n, clients[i].decisions, clients[i].nlatencies * sizeof(float));
		n += clients[i].nlatencies;
	}
	printf("%ld %.1f %.3f %.3f\n", transactions, rate, median(latencies, n), median(decisions, n));
	return 0;
}
