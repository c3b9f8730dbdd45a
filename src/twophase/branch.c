/*-------------------------------------------------------------------------
 *
 * branch.c
 *	  The participants of the open transaction, and what is asked of them before
 *	  it ends.
 *
 * A participant's transaction is begun in the same round trip as its first
 * statement, at the local transaction's isolation level.  Savepoints are made over
 * there only when a statement runs inside a local subtransaction, and released
 * together with the next statement; going back to one is done at once, so that its
 * locks are free.  That raises no error, as no error could be raised there: a
 * participant with which it fails is poisoned, and COMMIT fails.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/parallel.h"
#include "access/xact.h"
#include "catalog/namespace.h"
#include "catalog/pg_type.h"
#include "miscadmin.h"
#include "utils/lsyscache.h"
#include "utils/snapmgr.h"

#include "base/check.h"
#include "base/compat.h"
#include "base/errors.h"
#include "base/guc.h"
#include "base/installation.h"
#include "base/query.h"
#include "lock/lock.h"
#include "twophase/branch.h"
#include "twophase/foreign_write.h"
#include "twophase/twophase_shared.h"

/* How long going back to a savepoint may take. */
#define ROLL_BACK_US (5 * USECS_PER_SEC)

/* How long a participant that is used for the first time is waited for. */
#define REGISTER_US (20 * USECS_PER_SEC)

#define ASK_XID "SELECT pg_catalog.pg_current_xact_id_if_assigned()"

Branch		branches[COORD_MAX_PARTICIPANTS];
int			nbranches = 0;

/* Mappings that this process has seen written down, in the table of this oid. */
static struct
{
	Oid			mapping;
	Oid			role;
}			known[COORD_MAX_PARTICIPANTS];
static int	nknown = 0;
static Oid	known_in = InvalidOid;

/* Is the mapping written down, so that a resolver will look there? */
static bool
is_written_down(Oid mapping, Oid role)
{
	static Statement read = {
		"SELECT FROM coord_internal.twophase_participant WHERE mapping = $1 AND (role = $2 OR $3)",
		3, {OIDOID, OIDOID, BOOLOID}
	};
	Oid			table = get_relname_relid("twophase_participant",
										  get_namespace_oid("coord_internal", false));
	QueryScope	scope;
	Datum		values[3];
	bool		found;

	if (table != known_in)
		nknown = 0;
	known_in = table;
	for (int i = 0; i < nknown; i++)
	{
		if (known[i].mapping == mapping && known[i].role == role)
			return true;
	}

	/* A superuser may do without a password, so who looks there must be one, too. */
	values[0] = ObjectIdGetDatum(mapping);
	values[1] = ObjectIdGetDatum(role);
	values[2] = BoolGetDatum(!superuser_arg(role));
	query_begin(&scope);
	found = query_run_latest(&read, values, NULL, 1) > 0;
	query_end(&scope);
	if (found)
	{
		int			at = nknown < COORD_MAX_PARTICIPANTS ? nknown++ : 0;

		known[at].mapping = mapping;
		known[at].role = role;
	}
	return found;
}

/* A copy does not act until somebody says so. */
static void
check_no_copy(void)
{
	if (installation_is_copy())
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("this database is a copy and does not act"),
				 errhint("SELECT coord.resume(); if it shall.")));
}

/*
 * Before anything is prepared under a mapping, the resolver has written down, in a
 * transaction of its own, that it is to look there: whoever crashes after PREPARE
 * leaves nothing else behind that would tell.  It also sees to it that a decision
 * has a partition to go to.  Waits for it the first time.  "mapping" may be NULL.
 */
static void
ensure_ready(const UserMapping *mapping)
{
	static uint32 wait_event = 0;
	TwophaseDatabase *database = twophase_database();
	Oid			installation = get_namespace_oid("coord_internal", false);
	int64		until = 0;

	for (;;)
	{
		int64		now = remote_now();
		TimestampTz clock = GetCurrentTimestamp();
		bool		ready = database->incarnation != 0 &&
			database->installation == installation &&
			database->covered_from <= clock && clock < database->covered_until;

		if (ready && (mapping == NULL || is_written_down(mapping->umid, mapping->userid)))
			return;
		if (until == 0)
		{
			/* Where nobody will answer. */
			check_no_copy();
			doorbell_attach();
			if (coord_shared->launcher_pid == 0)
				ereport(ERROR,
						(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
						 errmsg("coord's launcher is not running"),
						 errdetail("Nobody would finish a transaction that a crash leaves prepared at a participant."),
						 errhint("Add coord to shared_preload_libraries and restart the server.")));
			if (!guc_enabled)
				ereport(ERROR,
						(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
						 errmsg("coord is disabled"),
						 errdetail("Before a participant is used for the first time, the resolver notes it, and it does not run."),
						 errhint("Set coord.enabled = on and reload the configuration, unless this server is a copy that is not to act.")));
			(void) lock_token_current();	/* or its error, which the resolver meets, too */
			until = now + REGISTER_US;
		}
		if (now >= until)
			ereport(ERROR,
					(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
					 errmsg("coord's resolver did not answer"),
					 errdetail("Before a participant is used for the first time, the resolver notes it in a transaction of its own, and did not do so within %d s.",
							   (int) (REGISTER_US / USECS_PER_SEC)),
					 errhint("A server or user mapping that this transaction made must be committed first. Else see the server's log, and max_worker_processes.")));
		LWLockAcquire(&twophase_shared->lock, LW_EXCLUSIVE);
		for (int i = 0; mapping != NULL; i++)
		{
			if (i < database->nrequests && database->requests[i].mapping == mapping->umid &&
				database->requests[i].role == mapping->userid)
				break;
			if (i == TWOPHASE_REQUESTS)
				break;
			if (i == database->nrequests)
			{
				database->requests[i].mapping = mapping->umid;
				database->requests[i].role = mapping->userid;
				database->nrequests++;
				break;
			}
		}
		LWLockRelease(&twophase_shared->lock);
		twophase_want_resolver(database, 0);
		ConditionVariablePrepareToSleep(&database->answered);
		(void) ConditionVariableTimedSleep(&database->answered, 200,
										   coord_wait_event(&wait_event, "CoordRegister"));
		ConditionVariableCancelSleep();
	}
}

/* The same where no participant is meant: a decision can be recorded. */
void
branch_be_ready(void)
{
	installation_check();
	check_not_in_recovery("a statement at a participant");
	ensure_ready(NULL);
}

/*
 * The participant "name" in the open transaction, connected.  "until" as for
 * remote_wait().
 */
Branch *
branch_enlist(const char *name, int64 until)
{
	ForeignServer *server;
	UserMapping *mapping;
	Remote	   *remote;
	Branch	   *branch;

	installation_check();
	twophase_check_open();
	check_not_in_recovery("a statement at a participant");
	if (IsInParallelMode())
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_TRANSACTION_STATE),
				 errmsg("participants cannot be used during a parallel operation")));
	mapping = remote_participant(name, &server);
	for (int i = 0; i < nbranches; i++)
	{
		remote = branches[i].remote;
		if (remote->mapping == mapping->umid && remote->user == mapping->userid)
			return &branches[i];
	}
	foreign_write_check();
	if (nbranches == COORD_MAX_PARTICIPANTS)
		ereport(ERROR,
				(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
				 errmsg("too many participants in one transaction"),
				 errdetail("There may be %d.", COORD_MAX_PARTICIPANTS)));
	check_no_copy();
	ensure_ready(mapping);
	twophase_hold_mapping(mapping->umid);
	remote = remote_find(server, mapping);
	remote_connect(remote, until);
	if (remote->in_recovery)
	{
		remote_close(remote);
		ereport(ERROR,
				(errcode(ERRCODE_COORD_PARTICIPANT_FAILED),
				 errmsg("participant \"%s\" is a standby", name),
				 errhint("Point the server's options at the primary, or use target_session_attrs.")));
	}
	twophase_enlisted();
	branch = &branches[nbranches++];
	memset(branch, 0, sizeof(Branch));
	branch->remote = remote;
	remote->in_use = true;
	return branch;
}

/*
 * Add to the batch what has to come before a statement: BEGIN, and savepoints as
 * deep as the local transaction is now.
 */
void
branch_send_begin(Branch *branch)
{
	Remote	   *remote = branch->remote;
	int			level = GetCurrentTransactionNestLevel();
	char		sql[128];

	if (branch->level == 0)
	{
		snprintf(sql, sizeof(sql), "BEGIN ISOLATION LEVEL %s%s",
				 IsolationIsSerializable() ? "SERIALIZABLE" :
				 IsolationUsesXactSnapshot() ? "REPEATABLE READ" : "READ COMMITTED",
				 XactReadOnly ? " READ ONLY" : "");
		(void) remote_add(remote, sql, 0, NULL, true);
		if (remote->pooled || remote->lock_timeout != guc_twophase_lock_timeout)
		{
			snprintf(sql, sizeof(sql), "SET LOCAL lock_timeout = %d", guc_twophase_lock_timeout);
			(void) remote_add(remote, sql, 0, NULL, false);
		}
		branch->level = 1;
	}
	if (branch->immediate)
		(void) remote_add(remote, "SET CONSTRAINTS ALL DEFERRED", 0, NULL, true);
	branch->immediate = false;
	if (branch->release != 0)
	{
		snprintf(sql, sizeof(sql), "RELEASE SAVEPOINT coord_%d", branch->release);
		(void) remote_add(remote, sql, 0, NULL, false);
		branch->release = 0;
	}
	while (branch->level < level)
	{
		/* Deeper than a batch has room for: in pieces. */
		if (remote->ncommands > REMOTE_BATCH - 8)
		{
			(void) remote_go(remote);
			(void) remote_wait(&remote, 1, remote_now() + ROLL_BACK_US, true);
			if (remote->state != REMOTE_IDLE || remote_error(remote) != NULL)
				remote_raise(remote, "no answer to SAVEPOINT");
			remote_batch(remote);
		}
		snprintf(sql, sizeof(sql), "SAVEPOINT coord_%d", ++branch->level);
		(void) remote_add(remote, sql, 0, NULL, false);
	}
}

/* What a participant said of its transaction id. */
void
branch_note_xid(Branch *branch, const PGresult *result)
{
	if (result != NULL && PQresultStatus(result) == PGRES_TUPLES_OK && PQntuples(result) == 1 &&
		!PQgetisnull(result, 0, 0))
	{
		branch->xid = strtou64(PQgetvalue(result, 0, 0), NULL, 10);
		branch->wrote = true;
	}
}

/*
 * A statement that would end or change the transaction over there behind our back?
 * Looks at its first words; comments are passed over.
 */
static bool
is_transaction_control(const char *sql)
{
	static const char *const words[] = {
		"abort", "begin", "commit", "end", "release", "rollback", "savepoint", "start", "copy",
		"prepare transaction"
	};
	char		text[32];
	int			n = 0;
	int			depth = 0;

	for (; *sql && n < sizeof(text) - 1; sql++)
	{
		if (depth > 0 || (sql[0] == '/' && sql[1] == '*'))
		{
			if (sql[0] == '/' && sql[1] == '*')
			{
				depth++;
				sql++;
			}
			else if (sql[0] == '*' && sql[1] == '/')
			{
				/* A comment is a space. */
				if (--depth == 0 && n > 0 && text[n - 1] != ' ')
					text[n++] = ' ';
				sql++;
			}
			continue;
		}
		if (sql[0] == '-' && sql[1] == '-')
		{
			while (sql[1] && sql[1] != '\n' && sql[1] != '\r')
				sql++;
			continue;
		}
		if (strchr(" \t\n\r\f\v;", *sql) != NULL)
		{
			if (n > 0 && text[n - 1] != ' ')
				text[n++] = ' ';
			continue;
		}
		text[n++] = pg_tolower((unsigned char) *sql);
	}
	text[n] = '\0';
	for (int i = 0; i < lengthof(words); i++)
	{
		int			length = strlen(words[i]);

		if (strncmp(text, words[i], length) == 0 && !isalnum((unsigned char) text[length]) &&
			text[length] != '_')
			return true;
	}
	return false;
}

/* 0A000 for a statement that would end the transaction over there. */
void
branch_check_statement(const char *sql)
{
	if (is_transaction_control(sql))
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("transaction control and COPY cannot be used at a participant"),
				 errdetail("The participant's transaction ends together with this one.")));
}

/*
 * Run one statement in the participant's transaction; ZC010 if it fails.  The
 * result is the connection's, until its next batch.  With "at_once" deferred
 * constraints are checked behind it, and not at the end.
 */
PGresult *
branch_execute(Branch *branch, const char *sql, int nvalues, const char *const *values,
			   int64 until, bool keep, bool at_once)
{
	Remote	   *remote = branch->remote;
	bool		fresh = branch->level == 0;
	PGresult   *result;
	int			at;

	branch_check_statement(sql);
	if (branch->poisoned)
		ereport(ERROR,
				(errcode(ERRCODE_COORD_PARTICIPANT_FAILED),
				 errmsg("participant \"%s\" cannot be used any more in this transaction",
						remote->server),
				 errdetail("Its connection was lost, or it could not go back to a savepoint."),
				 errhint("Roll this transaction back.")));

	/* A connection that was lost since its last use has not even begun: once more. */
	for (int attempt = 0;; attempt++)
	{
		remote_batch(remote);
		branch_send_begin(branch);
		at = remote->ncommands;
		(void) remote_add(remote, sql, nvalues, values, keep);
		at = Max(at, remote->ncommands - 1);
		if (at_once)
			(void) remote_add(remote, "SET CONSTRAINTS ALL IMMEDIATE", 0, NULL, true);
		branch->immediate = at_once;
		if (branch->xid == 0)
			(void) remote_add(remote, ASK_XID, 0, NULL, true);
		(void) remote_go(remote);
		if (!remote_wait(&remote, 1, until, true))
			ereport(ERROR,
					(errcode(ERRCODE_COORD_PARTICIPANT_FAILED),
					 errmsg("participant \"%s\" did not answer in time", remote->server),
					 errdetail("The statement is cancelled there.")));
		if (remote->state == REMOTE_IDLE || !fresh || attempt > 0)
			break;
		branch->level = 0;
		remote_close(remote);
		remote->in_use = true;
		remote_connect(remote, until);
	}
	if (remote->state != REMOTE_IDLE)
		branch->poisoned = true;
	result = remote->ncommands > at ? remote->results[at] : NULL;
	if (remote->state != REMOTE_IDLE || remote_error(remote) != NULL || result == NULL)
	{
		const char *sqlstate = remote_sqlstate(remote);

		/* Kept statements are not good any more: the next transaction begins anew. */
		if (sqlstate != NULL && (strcmp(sqlstate, "26000") == 0 || strcmp(sqlstate, "0A000") == 0))
			remote->stale = true;
		remote_raise(remote, "the connection was lost");
	}
	if (PQresultStatus(result) == PGRES_EMPTY_QUERY)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("sql must not be empty")));
	if (branch->xid == 0)
		branch_note_xid(branch, remote->results[remote->ncommands - 1]);
	if (PQtransactionStatus(remote->conn) != PQTRANS_INTRANS)
	{
		branch->poisoned = true;
		ereport(ERROR,
				(errcode(ERRCODE_COORD_PARTICIPANT_FAILED),
				 errmsg("the statement ended the transaction of participant \"%s\"",
						remote->server)));
	}
	return result;
}

/*
 * The local subtransaction of this level was rolled back.  Raises nothing.
 */
void
branch_roll_back_to(Branch *branch, int level)
{
	Remote	   *remote = branch->remote;
	int64		until = remote_now() + ROLL_BACK_US;
	char		sql[64];

	if (branch->state != BRANCH_OPEN)
	{
		branch->poisoned = true;	/* what it voted is undone with the transaction */
		return;
	}
	if (branch->level < level)
		return;
	branch->level = level - 1;
	branch->release = 0;
	if (branch->poisoned)
		return;
	branch->poisoned = true;
	if (remote->state == REMOTE_BUSY)
	{
		remote_cancel(remote, until);
		(void) remote_wait(&remote, 1, until, false);
	}
	if (remote->state != REMOTE_IDLE)
	{
		remote_close(remote);
		return;
	}
	remote_batch(remote);
	snprintf(sql, sizeof(sql), "ROLLBACK TO SAVEPOINT coord_%d", level);
	(void) remote_add(remote, sql, 0, NULL, false);
	snprintf(sql, sizeof(sql), "RELEASE SAVEPOINT coord_%d", level);
	(void) remote_add(remote, sql, 0, NULL, false);
	(void) remote_go(remote);
	(void) remote_wait(&remote, 1, until, false);
	if (remote->state == REMOTE_IDLE && remote_error(remote) == NULL)
		branch->poisoned = false;
	else
		remote_close(remote);
}

/* The transaction has ended.  Raises nothing. */
void
branch_forget_all(bool told)
{
	for (int i = 0; i < nbranches; i++)
		remote_release(branches[i].remote, told);
	nbranches = 0;
}
