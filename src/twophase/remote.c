/*-------------------------------------------------------------------------
 *
 * remote.c
 *	  Connections to participants, which are servers and user mappings of
 *	  postgres_fdw: only their definition is used, the connection is ours.
 *
 * A connection belongs to a user mapping and to the role that asked for it, and
 * is kept when a transaction has ended.  Everything that is asked is a batch of
 * commands, sent as one pipeline with one Sync behind it, so a batch is one round
 * trip.  Several connections are waited for together.
 *
 * Waiting is done with poll() and not with a WaitEventSet: phase two runs in a
 * callback of COMMIT, where nothing may fail, and a WaitEventSet allocates memory
 * and file descriptors.  A signal ends poll() at once; the one that comes just
 * before it is noticed after POLL_SLICE_MS.  No call of libpq's that blocks is
 * used, except that it resolves host names.
 *
 * What survives a transaction on the other side (settings, session locks,
 * temporary tables) must not reach the next one: a connection that is given back
 * is reset, and the answers to that are passed over when it is used next, so it costs
 * no round trip.  Where
 * a pooler is between, which is told by a backend PID that is not the one libpq
 * was told, sessions are the pooler's: nothing is kept prepared and nothing reset.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <poll.h>

#include "catalog/pg_foreign_server.h"
#include "catalog/pg_user_mapping.h"
#include "commands/defrem.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "portability/instr_time.h"
#include "storage/fd.h"
#include "storage/ipc.h"
#include "storage/pmsignal.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/inval.h"
#include "utils/memutils.h"
#include "utils/syscache.h"
#include "utils/wait_event.h"

#include "base/compat.h"
#include "base/errors.h"
#include "base/guc.h"
#include "twophase/remote.h"

#define POLL_SLICE_MS 50
#define EXIT_US (USECS_PER_SEC / 2)
#define CONNECT_TIMEOUT_US (10 * USECS_PER_SEC)

#define ASK \
	"SELECT pg_catalog.pg_backend_pid(), pg_catalog.pg_is_in_recovery()"

/*
 * Make a session as it was when it began; $1 is lock_timeout.  The last ones are for
 * what PREPARE TRANSACTION refuses, so where that has succeeded there is none of it:
 * cursors that outlive the transaction, LISTEN, temporary tables.
 */
#define RESET_TIMEOUT 2
#define RESET_PREPARED 3
static const char *const reset[] = {
	"SET SESSION AUTHORIZATION DEFAULT",
	"RESET ALL",
	"SELECT pg_catalog.pg_advisory_unlock_all(),"
	" pg_catalog.set_config('lock_timeout', $1, false),"
	" pg_catalog.set_config('datestyle', 'ISO', false),"
	" pg_catalog.set_config('intervalstyle', 'postgres', false),"
	" pg_catalog.set_config('extra_float_digits', '3', false),"
	" pg_catalog.set_config('bytea_output', 'hex', false)",
	"CLOSE ALL",
	"UNLISTEN *",
	"DISCARD TEMP"
};

/* Real time that does not jump, also where coord.test_now is set; us. */
int64
remote_now(void)
{
	instr_time	now;

	INSTR_TIME_SET_CURRENT(now);
	return (int64) INSTR_TIME_GET_MICROSEC(now);
}

/* This process's connections. */
static dlist_head remotes = DLIST_STATIC_INIT(remotes);
static bool callbacks_registered = false;

/* A server or a mapping has changed; hash 0: any. */
static void
definition_changed(Datum arg, int cache, uint32 hash)
{
	dlist_iter	iter;

	dlist_foreach(iter, &remotes)
	{
		Remote	   *remote = dlist_container(Remote, node, iter.cur);

		if (hash == 0 || (cache == FOREIGNSERVEROID && hash == remote->server_hash) ||
			(cache == USERMAPPINGOID && hash == remote->mapping_hash))
			remote->stale = true;
	}
}

/*
 * Notes a WARNING, whatever language it is in.  One that user code raised says
 * nothing about the command that it ran in; commands of a batch cannot be told apart
 * here.
 */
static void
notice_receiver(void *arg, const PGresult *result)
{
	const char *severity = PQresultErrorField(result, PG_DIAG_SEVERITY_NONLOCALIZED);
	const char *function = PQresultErrorField(result, PG_DIAG_SOURCE_FUNCTION);

	if (severity != NULL && strcmp(severity, "WARNING") == 0 &&
		(function == NULL || strcmp(function, "exec_stmt_raise") != 0))
	{
		const char *message = PQresultErrorField(result, PG_DIAG_MESSAGE_PRIMARY);

		((Remote *) arg)->warned = true;
		strlcpy(((Remote *) arg)->warning, message ? message : "", WARNING_SIZE);
	}
}

/*
 * The participant "name" and the mapping that the current user has there.  42704
 * when there is none, 42501 without USAGE.
 */
UserMapping *
remote_participant(const char *name, ForeignServer **server)
{
	ForeignDataWrapper *wrapper;
	AclResult	access;

	*server = GetForeignServerByName(name, true);
	if (*server == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("server \"%s\" does not exist", name),
				 errhint("CREATE SERVER ... FOREIGN DATA WRAPPER postgres_fdw, and CREATE USER MAPPING.")));
	access = coord_server_aclcheck((*server)->serverid, GetUserId());
	if (access != ACLCHECK_OK)
		aclcheck_error(access, OBJECT_FOREIGN_SERVER, name);
	wrapper = GetForeignDataWrapper((*server)->fdwid);
	if (strcmp(wrapper->fdwname, "postgres_fdw") != 0)
		ereport(ERROR,
				(errcode(ERRCODE_WRONG_OBJECT_TYPE),
				 errmsg("server \"%s\" is not a server of postgres_fdw", name),
				 errdetail("Its foreign-data wrapper is \"%s\".", wrapper->fdwname)));
	return GetUserMapping(GetUserId(), (*server)->serverid);
}

/* Is the option one of libpq's that a server or a mapping may set? */
static bool
is_connection_option(const char *name)
{
	static PQconninfoOption *options = NULL;

	if (options == NULL)
		options = PQconndefaults();
	if (options == NULL || strcmp(name, "fallback_application_name") == 0 ||
		strcmp(name, "client_encoding") == 0)
		return false;
	for (PQconninfoOption *option = options; option->keyword; option++)
	{
		if (strcmp(option->keyword, name) == 0)
			return strchr(option->dispchar, 'D') == NULL;
	}
	return false;
}

static int
take_options(Remote *remote, List *options, int n)
{
	ListCell   *cell;

	foreach(cell, options)
	{
		DefElem    *option = lfirst(cell);

		if (!is_connection_option(option->defname))
			continue;
		remote->keywords[n] = pstrdup(option->defname);
		remote->values[n++] = pstrdup(defGetString(option));
	}
	return n;
}

static bool
password_is_required(UserMapping *mapping)
{
	ListCell   *cell;

	foreach(cell, mapping->options)
	{
		DefElem    *option = lfirst(cell);

		if (strcmp(option->defname, "password_required") == 0)
			return defGetBoolean(option);
	}
	return true;
}

/*
 * How to connect, by the rules of postgres_fdw: who is not a superuser must give
 * a password in the mapping, lest the server's own identity be used.
 */
static void
read_definition(Remote *remote, ForeignServer *server, UserMapping *mapping)
{
	MemoryContext old = MemoryContextSwitchTo(TopMemoryContext);
	int			n = list_length(server->options) + list_length(mapping->options) + 3;
	bool		password = false;

	remote->keywords = palloc0(sizeof(char *) * n);
	remote->values = palloc0(sizeof(char *) * n);
	n = take_options(remote, server->options, 0);
	n = take_options(remote, mapping->options, n);
	for (int i = 0; i < n; i++)
		password = password ||
			(strcmp(remote->keywords[i], "password") == 0 && remote->values[i][0] != '\0');
	remote->keywords[n] = pstrdup("fallback_application_name");
	remote->values[n++] = pstrdup("coord");
	remote->keywords[n] = pstrdup("client_encoding");
	remote->values[n++] = pstrdup(GetDatabaseEncodingName());
	MemoryContextSwitchTo(old);

	remote->must_use_password = !superuser_arg(mapping->userid) && password_is_required(mapping);
	strlcpy(remote->server, server->servername, NAMEDATALEN);
	remote->server_hash = GetSysCacheHashValue1(FOREIGNSERVEROID,
												ObjectIdGetDatum(server->serverid));
	remote->mapping_hash = GetSysCacheHashValue1(USERMAPPINGOID,
												 ObjectIdGetDatum(mapping->umid));
	remote->stale = false;
	if (remote->must_use_password && !password)
		ereport(ERROR,
				(errcode(ERRCODE_S_R_E_PROHIBITED_SQL_STATEMENT_ATTEMPTED),
				 errmsg("password is required"),
				 errdetail("Non-superusers must provide a password in the user mapping.")));
}

static void
forget_definition(Remote *remote)
{
	for (int i = 0; remote->keywords != NULL && remote->keywords[i] != NULL; i++)
	{
		pfree(unconstify(char *, remote->keywords[i]));
		pfree(unconstify(char *, remote->values[i]));
	}
	if (remote->keywords != NULL)
	{
		pfree(remote->keywords);
		pfree(remote->values);
	}
	remote->keywords = remote->values = NULL;
}

/*
 * The process ends: close connections when what is under way is answered, so that
 * participants do not complain of lost ones.
 */
static void
close_all(int code, Datum arg)
{
	Remote	   *list[COORD_MAX_PARTICIPANTS];
	int			n = 0;
	dlist_iter	iter;

	dlist_foreach(iter, &remotes)
	{
		Remote	   *remote = dlist_container(Remote, node, iter.cur);

		if (n < COORD_MAX_PARTICIPANTS && remote->state == REMOTE_IDLE && remote->skip > 0)
		{
			remote_batch(remote);
			(void) remote_go(remote);
		}
		if (n < COORD_MAX_PARTICIPANTS && remote->state == REMOTE_BUSY)
			list[n++] = remote;
	}
	(void) remote_wait(list, n, remote_now() + EXIT_US, false);
	dlist_foreach(iter, &remotes)
		remote_close(dlist_container(Remote, node, iter.cur));
}

/*
 * The connection of a mapping, open or not.  One whose definition has changed is
 * closed first, unless it is in use.  Errors as in read_definition().
 */
Remote *
remote_find(ForeignServer *server, UserMapping *mapping)
{
	Remote	   *remote = NULL;
	dlist_iter	iter;

	if (!callbacks_registered)
	{
		CacheRegisterSyscacheCallback(FOREIGNSERVEROID, definition_changed, (Datum) 0);
		CacheRegisterSyscacheCallback(USERMAPPINGOID, definition_changed, (Datum) 0);
		on_proc_exit(close_all, (Datum) 0);
		callbacks_registered = true;
	}
	dlist_foreach(iter, &remotes)
	{
		Remote	   *candidate = dlist_container(Remote, node, iter.cur);

		if (candidate->mapping == mapping->umid && candidate->user == mapping->userid)
			remote = candidate;
	}
	if (remote == NULL)
	{
		remote = MemoryContextAllocZero(TopMemoryContext, sizeof(Remote));
		remote->mapping = mapping->umid;
		remote->user = mapping->userid;
		remote->serverid = server->serverid;
		remote->stale = true;
		dlist_push_tail(&remotes, &remote->node);
	}
	if (remote->stale && !remote->in_use)
	{
		remote_close(remote);
		forget_definition(remote);
		remote->stale = true;
		read_definition(remote, server, mapping);
	}
	return remote;
}

/* Close the connection, whatever it is doing.  Raises nothing. */
void
remote_close(Remote *remote)
{
	for (int i = 0; i < REMOTE_BATCH; i++)
	{
		if (remote->results[i] != NULL)
			PQclear(remote->results[i]);
		remote->results[i] = NULL;
		remote->prepares[i] = NULL;
	}
	remote->ncommands = remote->nanswered = 0;
	for (int i = 0; i < REMOTE_STATEMENTS; i++)
	{
		if (remote->statements[i].sql != NULL)
			pfree(remote->statements[i].sql);
		remote->statements[i].sql = NULL;
	}
	if (remote->conn != NULL)
	{
		PQfinish(remote->conn);
		ReleaseExternalFD();
	}
	remote->conn = NULL;
	remote->state = REMOTE_CLOSED;
	remote->in_use = remote->reset_prepared = remote->prepared = false;
	remote->skip = 0;
}

/* Begin to connect, if it is closed or broken.  Raises nothing but out of memory. */
void
remote_start(Remote *remote)
{
	int64		timeout = CONNECT_TIMEOUT_US;

	if (remote->state == REMOTE_BROKEN)
		remote_close(remote);
	if (remote->state != REMOTE_CLOSED)
		return;
	for (int i = 0; remote->keywords[i] != NULL; i++)
	{
		if (strcmp(remote->keywords[i], "connect_timeout") == 0 && atoi(remote->values[i]) > 0)
			timeout = atoi(remote->values[i]) * USECS_PER_SEC;
	}
	remote->connect_until = remote_now() + timeout;
	remote->state = REMOTE_BROKEN;
	if (!AcquireExternalFD())
		return;
	remote->conn = PQconnectStartParams(remote->keywords, remote->values, 0);
	if (remote->conn == NULL)
	{
		ReleaseExternalFD();
		return;
	}
	PQsetNoticeReceiver(remote->conn, notice_receiver, remote);
	if (PQstatus(remote->conn) != CONNECTION_BAD)
	{
		remote->connect_wants = POLLOUT;
		remote->state = REMOTE_CONNECTING;
	}
}

/* Send a string of commands whose answer is only looked at for errors. */
static RemoteState
send_simple(Remote *remote, const char *sql, RemoteState state)
{
	if (!PQsendQuery(remote->conn, sql))
		return REMOTE_BROKEN;
	(void) PQflush(remote->conn);
	return state;
}

/*
 * Make the session as new, behind whatever is under way; the answers are passed over.
 * The statements are prepared by the first call.  Raises nothing.
 */
static RemoteState
send_reset(Remote *remote)
{
	char		timeout[16];
	const char *values[1] = {timeout};
	int			count = remote->prepared ? RESET_PREPARED : lengthof(reset);
	bool		sent = true;

	remote->lock_timeout = guc_twophase_lock_timeout;
	snprintf(timeout, sizeof(timeout), "%d", remote->lock_timeout);
	for (int i = 0; i < count && sent; i++)
	{
		int			n = i == RESET_TIMEOUT ? 1 : 0;
		char		name[32];

		snprintf(name, sizeof(name), "coord_reset_%d", i);
		if (!remote->reset_prepared)
			sent = PQsendPrepare(remote->conn, name, reset[i], 0, NULL);
		sent = sent && PQsendQueryPrepared(remote->conn, name, n, values, NULL, NULL, 0);
	}
	remote->reset_prepared = true;
	remote->prepared = false;
	if (!sent || !PQpipelineSync(remote->conn) || PQflush(remote->conn) < 0)
		return REMOTE_BROKEN;
	remote->skip++;
	return REMOTE_IDLE;
}

/* A step of connecting. */
static RemoteState
look_connecting(Remote *remote)
{
	switch (PQconnectPoll(remote->conn))
	{
		case PGRES_POLLING_READING:
			remote->connect_wants = POLLIN;
			return REMOTE_CONNECTING;
		case PGRES_POLLING_WRITING:
			remote->connect_wants = POLLOUT;
			return REMOTE_CONNECTING;
		case PGRES_POLLING_OK:
			if (remote->must_use_password && !PQconnectionUsedPassword(remote->conn))
				return REMOTE_BROKEN;
			PQsetnonblocking(remote->conn, 1);
			return send_simple(remote, ASK, REMOTE_ASKING);
		default:
			return REMOTE_BROKEN;
	}
}

/* What comes as the answer to the question who is there. */
static RemoteState
look_asking(Remote *remote)
{
	PGresult   *result;
	bool		failed = false;

	while (!PQisBusy(remote->conn))
	{
		result = PQgetResult(remote->conn);
		if (result == NULL)
		{
			if (PQstatus(remote->conn) == CONNECTION_BAD)
				return REMOTE_BROKEN;
			if (!PQenterPipelineMode(remote->conn))
				return REMOTE_BROKEN;
			return remote->pooled ? REMOTE_IDLE : send_reset(remote);
		}
		if (PQresultStatus(result) == PGRES_TUPLES_OK && PQntuples(result) == 1)
		{
			remote->pooled = atoi(PQgetvalue(result, 0, 0)) != PQbackendPID(remote->conn);
			remote->in_recovery = PQgetvalue(result, 0, 1)[0] == 't';
		}
		failed = PQresultStatus(result) != PGRES_TUPLES_OK &&
			PQresultStatus(result) != PGRES_COMMAND_OK;
		PQclear(result);
		if (failed)
			return REMOTE_BROKEN;
	}
	return remote->state;
}

/* Pass over what nobody waits for; false: an error is among it. */
static bool
skip_answers(Remote *remote)
{
	while (remote->skip > 0 && !PQisBusy(remote->conn))
	{
		PGresult   *result = PQgetResult(remote->conn);
		ExecStatusType status = result ? PQresultStatus(result) : PGRES_COMMAND_OK;

		if (result == NULL && PQstatus(remote->conn) == CONNECTION_BAD)
			return false;
		PQclear(result);
		if (status == PGRES_PIPELINE_SYNC)
			remote->skip--;
		else if (status == PGRES_FATAL_ERROR)
			return false;
	}
	if (remote->skip == 0)
		return true;
	return PQstatus(remote->conn) != CONNECTION_BAD;
}

/* What comes as answers to a batch. */
static RemoteState
look_batch(Remote *remote)
{
	bool		skipping = remote->skip > 0;

	if (!skip_answers(remote))
		return REMOTE_BROKEN;
	if (remote->skip > 0)
		return REMOTE_BUSY;

	/* A warning that came with those is not the batch's. */
	if (skipping)
		remote->warned = false;
	while (!PQisBusy(remote->conn))
	{
		PGresult   *result = PQgetResult(remote->conn);
		int			at = remote->nanswered;

		if (result == NULL)
		{
			if (PQstatus(remote->conn) == CONNECTION_BAD || at >= remote->ncommands ||
				remote->results[at] == NULL)
				return REMOTE_BROKEN;
			remote->nanswered++;
			continue;
		}
		switch (PQresultStatus(result))
		{
			case PGRES_PIPELINE_SYNC:
				PQclear(result);
				return REMOTE_IDLE;
			case PGRES_COPY_IN:
			case PGRES_COPY_OUT:
			case PGRES_COPY_BOTH:
				PQclear(result);
				return REMOTE_BROKEN;
			default:
				if (at >= remote->ncommands)
				{
					PQclear(result);
					return REMOTE_BROKEN;
				}
				if (remote->results[at] != NULL)
					PQclear(remote->results[at]);
				remote->results[at] = result;
				if (remote->prepares[at] != NULL && PQresultStatus(result) != PGRES_COMMAND_OK)
				{
					pfree(remote->prepares[at]->sql);
					remote->prepares[at]->sql = NULL;
				}
		}
	}
	return REMOTE_BUSY;
}

/* Is an answer still to come? */
bool
remote_is_under_way(const Remote *remote)
{
	return remote->state == REMOTE_CONNECTING || remote->state == REMOTE_ASKING ||
		remote->state == REMOTE_BUSY;
}

/* Take what has come, without waiting; is an answer still to come? */
static bool
look_at(Remote *remote)
{
	if (remote->state != REMOTE_CONNECTING)
	{
		if (PQflush(remote->conn) < 0 || !PQconsumeInput(remote->conn))
			remote->state = REMOTE_BROKEN;
		else if (remote->state == REMOTE_BUSY)
			remote->state = look_batch(remote);
		else
			remote->state = look_asking(remote);
	}
	if (remote_is_under_way(remote) && remote->state != REMOTE_BUSY &&
		remote_now() > remote->connect_until)
		remote->state = REMOTE_BROKEN;
	return remote_is_under_way(remote);
}

/*
 * Take what has come on any of them; if nothing is finished by that, wait for at
 * most "us", once.  Returns how many are still under way.  Raises nothing.
 */
int
remote_poll(Remote **list, int count, int64 us)
{
	static uint32 wait_event = 0;
	struct pollfd fds[COORD_MAX_PARTICIPANTS];
	Remote	   *waiting[COORD_MAX_PARTICIPANTS];
	int			nfds = 0;
	bool		finished = false;

	Assert(count <= COORD_MAX_PARTICIPANTS);
	for (int i = 0; i < count; i++)
	{
		Remote	   *remote = list[i];

		if (!remote_is_under_way(remote))
			continue;
		if (!look_at(remote))
		{
			finished = true;
			continue;
		}
		fds[nfds].fd = PQsocket(remote->conn);
		fds[nfds].events = remote->state == REMOTE_CONNECTING ? remote->connect_wants :
			PQflush(remote->conn) > 0 ? POLLIN | POLLOUT : POLLIN;
		fds[nfds].revents = 0;
		waiting[nfds++] = remote;
	}
	if (nfds == 0 || finished || us <= 0)
		return nfds;
	pgstat_report_wait_start(coord_wait_event(&wait_event, "CoordParticipant"));
	(void) poll(fds, nfds, (int) Min(us / 1000 + 1, POLL_SLICE_MS));
	pgstat_report_wait_end();
	for (int i = 0; i < nfds; i++)
	{
		if (fds[i].revents != 0 && waiting[i]->state == REMOTE_CONNECTING)
			waiting[i]->state = look_connecting(waiting[i]);
	}
	return nfds;
}

/*
 * Wait until nothing is under way on any of them, or until "until"; returns
 * whether nothing is.  If "interruptible", interrupts raise their errors; else a
 * wish to cancel or to terminate ends the wait.
 */
bool
remote_wait(Remote **list, int count, int64 until, bool interruptible)
{
	for (;;)
	{
		int64		left = until - remote_now();

		if (interruptible)
			CHECK_FOR_INTERRUPTS();
		if (remote_poll(list, count, left) == 0)
			return true;
		if (left <= 0 || (!interruptible && (ProcDiePending || QueryCancelPending)))
			return false;
		if (!PostmasterIsAlive())
		{
			/* In the middle of a commit nothing may end the process. */
			if (!interruptible)
				return false;
			proc_exit(1);
		}
	}
}

/* Connect and wait for it; ZC010 if that fails. */
void
remote_connect(Remote *remote, int64 until)
{
	for (int attempt = 0;; attempt++)
	{
		bool		reused = remote->state != REMOTE_CLOSED && remote->state != REMOTE_BROKEN;

		/* One that was lost meanwhile is found out. */
		if (remote->state == REMOTE_IDLE &&
			(!PQconsumeInput(remote->conn) || !skip_answers(remote)))
			remote->state = REMOTE_BROKEN;
		remote_start(remote);
		(void) remote_wait(&remote, 1, until, true);
		if (remote->state == REMOTE_IDLE)
			break;
		if (remote->state != REMOTE_BROKEN)
			remote->state = REMOTE_BROKEN;
		if (!reused || attempt > 0)
			remote_raise(remote, "could not connect");
		remote_close(remote);
	}
	if (remote->must_use_password && !PQconnectionUsedPassword(remote->conn))
		remote_raise(remote, "could not connect");
}

/* Begin a batch, forgetting the answers to the one before. */
void
remote_batch(Remote *remote)
{
	for (int i = 0; i < remote->ncommands; i++)
	{
		if (remote->results[i] != NULL)
			PQclear(remote->results[i]);
		remote->results[i] = NULL;
		remote->prepares[i] = NULL;
	}
	remote->ncommands = remote->nanswered = 0;
	remote->warned = false;
}

/*
 * A statement that is kept prepared, made if need be, in the place of the one that
 * was not used for longest.
 */
static RemoteStatement *
kept_statement(Remote *remote, const char *sql, bool *made)
{
	RemoteStatement *result = NULL;

	*made = false;
	for (int i = 0; i < REMOTE_STATEMENTS; i++)
	{
		RemoteStatement *statement = &remote->statements[i];

		if (statement->sql != NULL && strcmp(statement->sql, sql) == 0)
		{
			statement->used = ++remote->uses;
			return statement;
		}
		if (result == NULL || (result->sql != NULL &&
							   (statement->sql == NULL || statement->used < result->used)))
			result = statement;
	}
	*made = true;
	return result;
}

/*
 * Add a command to the batch; false: the connection is broken.  With "keep" the
 * statement stays prepared for another time.  May raise out of memory if "keep".
 */
bool
remote_add(Remote *remote, const char *sql, int nvalues, const char *const *values, bool keep)
{
	RemoteStatement *statement;
	char		name[32];
	bool		made;

	if (remote->state != REMOTE_IDLE || remote->ncommands + 3 > REMOTE_BATCH)
		return false;
	if (!keep || remote->pooled)
	{
		remote->ncommands++;
		if (PQsendQueryParams(remote->conn, sql, nvalues, NULL, values, NULL, NULL, 0))
			return true;
		remote->state = REMOTE_BROKEN;
		return false;
	}
	statement = kept_statement(remote, sql, &made);
	if (made)
	{
		char		drop[64];
		char	   *copy = MemoryContextStrdup(TopMemoryContext, sql);

		if (statement->sql != NULL)
		{
			snprintf(drop, sizeof(drop), "DEALLOCATE coord_%d", statement->number);
			pfree(statement->sql);
			statement->sql = NULL;
			remote->ncommands++;
			if (!PQsendQueryParams(remote->conn, drop, 0, NULL, NULL, NULL, NULL, 0))
				remote->state = REMOTE_BROKEN;
		}
		statement->sql = copy;
		statement->number = ++remote->next_statement;
		statement->used = ++remote->uses;
		snprintf(name, sizeof(name), "coord_%d", statement->number);
		remote->prepares[remote->ncommands++] = statement;
		if (!PQsendPrepare(remote->conn, name, sql, 0, NULL))
			remote->state = REMOTE_BROKEN;
	}
	snprintf(name, sizeof(name), "coord_%d", statement->number);
	remote->ncommands++;
	if (!PQsendQueryPrepared(remote->conn, name, nvalues, values, NULL, NULL, 0))
		remote->state = REMOTE_BROKEN;
	return remote->state != REMOTE_BROKEN;
}

/* Send the batch; false: the connection is broken. */
bool
remote_go(Remote *remote)
{
	if (remote->state != REMOTE_IDLE)
		return false;
	if (!PQpipelineSync(remote->conn) || PQflush(remote->conn) < 0)
	{
		remote->state = REMOTE_BROKEN;
		return false;
	}
	remote->state = REMOTE_BUSY;
	return true;
}

/*
 * Cancel what runs there: by another connection, since libpq's own request blocks.
 * Bounded by "until"; raises nothing.
 */
void
remote_cancel(Remote *remote, int64 until)
{
	Remote		other = {0};
	Remote	   *list[1] = {&other};
	char		pid[16];
	const char *values[1] = {pid};

	if (remote->state != REMOTE_BUSY || remote->pooled)
		return;
	other.keywords = remote->keywords;
	other.values = remote->values;
	other.must_use_password = remote->must_use_password;
	snprintf(pid, sizeof(pid), "%d", PQbackendPID(remote->conn));
	remote_start(&other);
	other.connect_until = until;
	(void) remote_wait(list, 1, until, false);
	if (other.state == REMOTE_IDLE &&
		remote_add(&other, "SELECT pg_catalog.pg_cancel_backend($1)", 1, values, false) &&
		remote_go(&other))
		(void) remote_wait(list, 1, until, false);
	remote_close(&other);
}

/*
 * The transaction is over on this connection.  It is kept and made as new if all
 * is answered, or if it was only "told" to finish, the answer being passed over at
 * the next use; else closed.  Raises nothing.
 */
void
remote_release(Remote *remote, bool told)
{
	remote->in_use = false;
	if (told && remote->state == REMOTE_BUSY && !remote->pooled && !remote->stale)
	{
		remote_batch(remote);
		remote->skip++;
		remote->state = send_reset(remote);
		return;
	}
	remote_batch(remote);
	if (remote->state != REMOTE_IDLE || remote->stale ||
		PQtransactionStatus(remote->conn) != PQTRANS_IDLE)
	{
		remote_close(remote);
		return;
	}
	if (!remote->pooled)
		remote->state = send_reset(remote);
}

/* Did the command of the last batch succeed, with this tag and without a WARNING? */
bool
remote_succeeded(const Remote *remote, int command, const char *tag)
{
	const PGresult *result = command < remote->ncommands ? remote->results[command] : NULL;

	return remote->state == REMOTE_IDLE && result != NULL && !remote->warned &&
		(PQresultStatus(result) == PGRES_COMMAND_OK || PQresultStatus(result) == PGRES_TUPLES_OK) &&
		(tag == NULL || strcmp(PQcmdStatus(unconstify(PGresult *, result)), tag) == 0);
}

/* The first error in the answers to the last batch; NULL: there is none. */
PGresult *
remote_error(const Remote *remote)
{
	for (int i = 0; i < remote->ncommands; i++)
	{
		PGresult   *result = remote->results[i];

		if (result != NULL && PQresultStatus(result) == PGRES_FATAL_ERROR)
			return result;
	}
	return NULL;
}

/* Its SQLSTATE; 08006 when the connection is gone, NULL when there is no error. */
const char *
remote_sqlstate(const Remote *remote)
{
	PGresult   *error = remote_error(remote);
	const char *result = error ? PQresultErrorField(error, PG_DIAG_SQLSTATE) : NULL;

	if (result != NULL)
		return result;
	return remote->state == REMOTE_IDLE ? NULL : "08006";
}

/*
 * Raise what the participant answered, or that it did not, as an error of coord's
 * own: a client that sees 08006 would throw its healthy connection away.
 */
void
remote_raise(const Remote *remote, const char *what)
{
	PGresult   *error = remote_error(remote);
	const char *message = error ? PQresultErrorField(error, PG_DIAG_MESSAGE_PRIMARY) : NULL;
	const char *sqlstate = error ? PQresultErrorField(error, PG_DIAG_SQLSTATE) : NULL;

	if (message != NULL)
		ereport(ERROR,
				(errcode(ERRCODE_COORD_PARTICIPANT_FAILED),
				 errmsg("participant \"%s\": %s", remote->server, message),
				 errdetail("It answered with SQLSTATE %s.", sqlstate ? sqlstate : "unknown")));
	if (remote->conn != NULL && remote->must_use_password &&
		PQstatus(remote->conn) == CONNECTION_OK && !PQconnectionUsedPassword(remote->conn))
		ereport(ERROR,
				(errcode(ERRCODE_S_R_E_PROHIBITED_SQL_STATEMENT_ATTEMPTED),
				 errmsg("password is required"),
				 errdetail("Participant \"%s\" did not ask for the password of the user mapping.",
						   remote->server),
				 errhint("Change its authentication method, or let a superuser set password_required=false in the user mapping.")));
	message = remote->conn != NULL ? PQerrorMessage(remote->conn) : "";
	ereport(ERROR,
			(errcode(ERRCODE_COORD_PARTICIPANT_FAILED),
			 errmsg("participant \"%s\": %s", remote->server, what),
			 *message ? errdetail_internal("%s", pchomp(message)) :
			 errdetail("It did not answer in time, or there are too many open files here.")));
}
