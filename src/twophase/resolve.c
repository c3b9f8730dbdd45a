/*-------------------------------------------------------------------------
 *
 * resolve.c
 *	  One look at all participants: finish what is decided, say what is not.
 *
 * See resolver.c for the order of reading.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "access/xlog.h"
#include "catalog/pg_extension.h"
#include "catalog/pg_type.h"
#include "commands/extension.h"
#include "common/hashfn.h"
#include "miscadmin.h"
#include "storage/lock.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/syscache.h"

#include "base/debug_point.h"
#include "base/installation.h"
#include "base/query.h"
#include "lock/lock.h"
#include "twophase/commit.h"
#include "twophase/gid.h"
#include "twophase/remote.h"
#include "twophase/repair.h"
#include "twophase/resolve.h"

/* Of the extension: who has it is looking at participants. */
#define RESOLVER_LOCK 2

/* How long one answer of a participant is waited for. */
#define ANSWER_US (10 * USECS_PER_SEC)

/* How long the log's way to a synchronous standby is waited for. */
#define REPLICATED_US (10 * USECS_PER_SEC)

typedef enum Step
{
	STEP_CONNECT,
	STEP_LIST,					/* what is prepared was asked for */
	STEP_ACT,					/* one of them is being finished */
	STEP_AGAIN,					/* what is still prepared was asked for */
	STEP_DONE,
	STEP_FAILED
} Step;

typedef enum Verdict
{
	VERDICT_LEAVE,				/* its session is at it, or it is too young */
	VERDICT_COMMIT,
	VERDICT_ROLL_BACK,
	VERDICT_IN_DOUBT
} Verdict;

/* A prepared transaction of ours. */
typedef struct Found
{
	char		text[GID_SIZE];
	Gid			gid;
	bool		mine;			/* this mapping's user prepared it */
	char	   *owner;
	TimestampTz prepared_at;
	Verdict		verdict;
	const char *reason;
	bool		decided;		/* there is a decision */
	bool		resurrected;	/* it had been acknowledged before */
	bool		adopted;		/* by an incarnation that was adopted; see settle.c */
	bool		gone;
} Found;

typedef struct Target
{
	Oid			mapping;
	Oid			server;
	Oid			role;
	int64		acked;
	Remote	   *remote;			/* NULL: cannot be connected to */
	Step		step;
	int64		until;
	int64		seen_gtid;		/* ids up to here were given out before the list was asked for */
	int			nfound;
	Found	   *found;
	int			at;				/* which one is being finished */
	char	   *error;
} Target;

/* The participants that are written down, in the current memory context; "server" 0: all. */
static Target *
read_targets(int *count, Oid server)
{
	static Statement read = {
		"SELECT p.mapping, p.server, p.role, p.acked_gtid, m.umuser"
		" FROM coord_internal.twophase_participant p"
		" LEFT JOIN pg_user_mapping m ON m.oid = p.mapping"
		" WHERE p.server = $1 OR $1 = 0 ORDER BY p.mapping",
		1, {OIDOID}
	};
	MemoryContext context = CurrentMemoryContext;
	QueryScope	scope;
	Target	   *targets;
	Datum		value = ObjectIdGetDatum(server);
	uint64		rows;

	query_begin(&scope);
	rows = query_run_latest(&read, &value, NULL, 0);
	targets = MemoryContextAllocZero(context, sizeof(Target) * Max(rows, 1));
	for (uint64 i = 0; i < rows; i++)
	{
		Target	   *target = &targets[i];
		bool		isnull;

		target->mapping = DatumGetObjectId(query_value(i, 1, &isnull));
		target->server = DatumGetObjectId(query_value(i, 2, &isnull));
		target->role = DatumGetObjectId(query_value(i, 3, &isnull));
		target->acked = query_int8(i, 4);
		(void) query_value(i, 5, &isnull);
		if (isnull)
		{
			target->step = STEP_FAILED;
			target->error = MemoryContextStrdup(context, "its user mapping does not exist any more");
		}
	}
	query_end(&scope);
	*count = (int) rows;
	return targets;
}

/* Find the connection of a participant; its definition may be broken. */
static void
open_target(Target *target)
{
	MemoryContext context = CurrentMemoryContext;

	if (target->step == STEP_FAILED)
		return;
	PG_TRY();
	{
		UserMapping *mapping = GetUserMapping(target->role, target->server);

		target->remote = remote_find(GetForeignServer(target->server), mapping);
		target->remote->in_use = true;
		remote_start(target->remote);
	}
	PG_CATCH();
	{
		ErrorData  *error;

		MemoryContextSwitchTo(context);
		error = CopyErrorData();
		FlushErrorState();
		target->remote = NULL;
		target->step = STEP_FAILED;
		target->error = pstrdup(error->message);
		FreeErrorData(error);
	}
	PG_END_TRY();
	target->until = remote_now() + ANSWER_US;
}

/*
 * The lock that keeps two resolvers of one cluster apart.  One for each mapping, as
 * two may lead to the same database.
 */
static int64
fence_key(const Target *target, const TwophaseDatabase *database)
{
	uint64		seed = ((uint64) database->database << 32) | target->mapping;

	return (int64) hash_bytes_extended(database->cluster.data, UUID_LEN, seed);
}

/* Ask what is prepared; the first time for the fence, the last time to give it back. */
static void
send_list(Target *target, const TwophaseDatabase *database, Step step)
{
	char		key[32];
	char		prefix[GID_SIZE];
	const char *values[1] = {prefix};
	const char *keys[1] = {key};

	gid_prefix(prefix, &database->cluster);
	snprintf(key, sizeof(key), INT64_FORMAT, fence_key(target, database));
	remote_batch(target->remote);
	if (step == STEP_LIST && !target->remote->pooled)
		(void) remote_add(target->remote, "SELECT pg_catalog.pg_try_advisory_lock($1)", 1, keys, false);
	(void) remote_add(target->remote,
					  "SELECT gid, owner = current_user, owner,"
					  " (extract(epoch FROM prepared) * 1000000)::bigint - 946684800000000,"
					  " pg_catalog.pg_is_in_recovery()"
					  " FROM pg_catalog.pg_prepared_xacts WHERE database = pg_catalog.current_database()"
					  " AND pg_catalog.starts_with(gid, $1)"
					  " UNION ALL SELECT '', false, '', 0, pg_catalog.pg_is_in_recovery()",
					  1, values, false);
	if (step == STEP_AGAIN && !target->remote->pooled)
		(void) remote_add(target->remote, "SELECT pg_catalog.pg_advisory_unlock($1)", 1, keys, false);
	(void) remote_go(target->remote);
	target->step = step;
	target->until = remote_now() + ANSWER_US;
}

/* Give up on a participant for this time. */
static void
fail(Target *target, const char *why)
{
	Remote	   *remote = target->remote;
	PGresult   *error = remote_error(remote);
	const char *message = error ? PQresultErrorField(error, PG_DIAG_MESSAGE_PRIMARY) :
		remote->conn != NULL && remote->state == REMOTE_BROKEN ? PQerrorMessage(remote->conn) : NULL;

	target->step = STEP_FAILED;
	target->error = message && *message ? pchomp(message) : pstrdup(why);
	remote_close(remote);
}

/* Does the list contain it? */
static bool
list_has(const PGresult *list, const char *gid)
{
	for (int i = 0; i < PQntuples(list); i++)
	{
		if (strcmp(PQgetvalue(list, i, 0), gid) == 0)
			return true;
	}
	return false;
}

/* Which of these ids have a decision?  Under a fresh snapshot. */
static void
read_decisions(Target *target)
{
	static Statement read = {
		"SELECT gtid FROM coord_internal.twophase_decision WHERE gtid = ANY ($1)",
		1, {INT8ARRAYOID}
	};
	int64	   *gtids = palloc(sizeof(int64) * Max(target->nfound, 1));
	QueryScope	scope;
	Datum		value;
	uint64		rows;

	for (int i = 0; i < target->nfound; i++)
		gtids[i] = target->found[i].gid.gtid;
	value = query_int8_array(gtids, target->nfound);
	query_begin(&scope);
	rows = query_run_latest(&read, &value, NULL, 0);
	for (uint64 row = 0; row < rows; row++)
	{
		for (int i = 0; i < target->nfound; i++)
			target->found[i].decided = target->found[i].decided ||
				gtids[i] == query_int8(row, 1);
	}
	query_end(&scope);
}

/* Was the incarnation adopted by coord.twophase_adopt()? */
static bool
is_adopted(int incarnation)
{
	static Statement read = {
		"SELECT FROM coord_internal.twophase_incarnation WHERE id = $1 AND adopted_at IS NOT NULL",
		1, {INT4OID}
	};
	QueryScope	scope;
	Datum		value = Int32GetDatum(incarnation);
	bool		result;

	query_begin(&scope);
	result = query_run_latest(&read, &value, NULL, 1) > 0;
	query_end(&scope);
	return result;
}

/*
 * The highest id of which the decision may have been dropped.  Of one that is higher
 * and has none, as of before this was called, there never was one: what is dropped
 * and that it was commit together.  No clock is asked.
 */
int64
resolve_forgotten(void)
{
	static Statement read = {
		"SELECT coalesce(max(forgotten_gtid), 0) FROM coord_internal.twophase_cluster", 0, {0}
	};
	QueryScope	scope;
	int64		result;

	query_begin(&scope);
	query_run_latest(&read, NULL, NULL, 0);
	result = query_int8(0, 1);
	query_end(&scope);
	return result;
}

/*
 * What is to become of what was found.  Active first, then the decisions: see
 * resolver.c.
 */
static void
judge(Target *target, TwophaseDatabase *database)
{
	bool	   *active = palloc0(sizeof(bool) * Max(target->nfound, 1));
	int64		forgotten;

	for (int i = 0; i < target->nfound; i++)
		active[i] = twophase_is_active(target->found[i].gid.gtid);
	DEBUG_POINT("resolver_active_read");
	read_decisions(target);
	forgotten = resolve_forgotten();
	for (int i = 0; i < target->nfound; i++)
	{
		Found	   *found = &target->found[i];

		found->verdict = VERDICT_IN_DOUBT;
		if (active[i])
			found->verdict = VERDICT_LEAVE;
		else if (found->decided)
			found->verdict = VERDICT_COMMIT;
		else if (found->gid.incarnation != database->incarnation && is_adopted(found->gid.incarnation))
		{
			found->adopted = true;
			found->reason = "adopted, but not settled yet";
		}
		else if (found->gid.incarnation != database->incarnation)
			found->reason = psprintf("prepared under incarnation %d of this database, this is %d: what was decided is not known here; see coord.twophase_adopt()",
									 found->gid.incarnation, database->incarnation);
		else if (found->gid.gtid <= forgotten)
			found->reason = "older than coord.twophase_retention: its decision may have been dropped";
		else
			found->verdict = VERDICT_ROLL_BACK;
		if (!found->mine && (found->verdict == VERDICT_COMMIT || found->verdict == VERDICT_ROLL_BACK))
		{
			found->reason = psprintf("prepared by role \"%s\" there, as which no user mapping connects any more",
									 found->owner);
			found->verdict = VERDICT_IN_DOUBT;
		}
	}
}

/* The next one that is to be finished; else the list once more. */
static void
act_on_next(Target *target, TwophaseDatabase *database)
{
	char		sql[GID_SIZE + 32];

	while (target->at < target->nfound &&
		   target->found[target->at].verdict != VERDICT_COMMIT &&
		   target->found[target->at].verdict != VERDICT_ROLL_BACK)
		target->at++;
	if (target->at == target->nfound)
	{
		send_list(target, database, STEP_AGAIN);
		return;
	}
	snprintf(sql, sizeof(sql), "%s PREPARED '%s'",
			 target->found[target->at].verdict == VERDICT_COMMIT ? "COMMIT" : "ROLLBACK",
			 target->found[target->at].text);
	DEBUG_POINT("resolver_before_action");
	remote_batch(target->remote);
	(void) remote_add(target->remote, sql, 0, NULL, false);
	(void) remote_go(target->remote);
	target->step = STEP_ACT;
	target->until = remote_now() + ANSWER_US;
}

/* Is what was read, and all before it, where a failover could not lose it? */
bool
resolve_is_safe(void)
{
	XLogRecPtr	lsn = GetXLogInsertRecPtr();
	int64		until = remote_now() + REPLICATED_US;

	XLogFlush(lsn);
	while (!twophase_is_replicated(lsn))
	{
		if (remote_now() > until)
			return false;
		CHECK_FOR_INTERRUPTS();
		pg_usleep(10000);
	}
	return true;
}

/* The list has come: read it, and begin to act. */
static void
take_list(Target *target, TwophaseDatabase *database)
{
	Remote	   *remote = target->remote;
	PGresult   *list = remote->results[remote->ncommands - 1];
	bool		commits = false;

	if (remote_error(remote) != NULL || list == NULL)
	{
		fail(target, "it did not say what is prepared");
		return;
	}
	if (remote->ncommands > 1 && strcmp(PQgetvalue(remote->results[0], 0, 0), "t") != 0)
	{
		fail(target, "another resolver of this cluster is at work there: is a copy of this server running?");
		return;
	}
	if (strcmp(PQgetvalue(list, PQntuples(list) - 1, 4), "t") == 0)
	{
		fail(target, "it is a standby");
		return;
	}
	target->found = palloc0(sizeof(Found) * Max(PQntuples(list), 1));
	for (int i = 0; i < PQntuples(list); i++)
	{
		Found	   *found = &target->found[target->nfound];

		if (!gid_read(PQgetvalue(list, i, 0), &found->gid) ||
			found->gid.database != MyDatabaseId)
			continue;
		strlcpy(found->text, PQgetvalue(list, i, 0), GID_SIZE);
		found->mine = PQgetvalue(list, i, 1)[0] == 't';
		found->owner = pstrdup(PQgetvalue(list, i, 2));
		found->prepared_at = strtoi64(PQgetvalue(list, i, 3), NULL, 10);
		target->nfound++;
	}
	judge(target, database);
	for (int i = 0; i < target->nfound; i++)
		commits = commits || target->found[i].verdict == VERDICT_COMMIT;
	if (commits && !resolve_is_safe())
	{
		fail(target, "decisions have not reached the synchronous standby yet");
		return;
	}
	act_on_next(target, database);
}

/* One has been finished, or not. */
static void
take_action(Target *target, TwophaseDatabase *database)
{
	Found	   *found = &target->found[target->at];
	const char *sqlstate = remote_sqlstate(target->remote);
	bool		commit = found->verdict == VERDICT_COMMIT;

	DEBUG_POINT("resolver_acted");
	if (remote_succeeded(target->remote, 0, commit ? "COMMIT PREPARED" : "ROLLBACK PREPARED"))
	{
		if (commit)
			database->committed++;
		else
			database->rolled_back++;
		if (commit && (found->gid.gtid <= target->acked ||
					   !twophase_is_unacknowledged(database, found->gid.gtid)))
		{
			database->resurrected++;
			found->resurrected = true;
		}
	}
	else if (sqlstate != NULL && strcmp(sqlstate, "42501") == 0)
	{
		found->verdict = VERDICT_IN_DOUBT;
		found->reason = "permission denied there to finish it";
	}
	target->at++;
	act_on_next(target, database);
}

/* What is still there. */
static void
take_rest(Target *target)
{
	PGresult   *list = target->remote->results[0];

	if (remote_error(target->remote) != NULL || list == NULL)
	{
		fail(target, "it did not say what is prepared");
		return;
	}
	for (int i = 0; i < target->nfound; i++)
		target->found[i].gone = !list_has(list, target->found[i].text);
	target->step = STEP_DONE;
	remote_release(target->remote, false);
}

/* Go on with a participant on whose connection nothing is under way. */
static void
go_on(Target *target, TwophaseDatabase *database)
{
	if (target->remote->state != REMOTE_IDLE)
	{
		fail(target, "it did not answer");
		return;
	}
	switch (target->step)
	{
		case STEP_CONNECT:
			target->seen_gtid = lock_token_current();
			target->seen_gtid = Min(target->seen_gtid, twophase_oldest_active() - 1);
			send_list(target, database, STEP_LIST);
			break;
		case STEP_LIST:
			take_list(target, database);
			break;
		case STEP_ACT:
			take_action(target, database);
			break;
		case STEP_AGAIN:
			take_rest(target);
			break;
		case STEP_DONE:
		case STEP_FAILED:
			break;
	}
}

/* Ask all of a piece, each at its own pace. */
static void
ask_all(Target *targets, int count, TwophaseDatabase *database)
{
	for (;;)
	{
		Remote	   *list[COORD_MAX_PARTICIPANTS];
		int			n = 0;
		bool		moved = false;

		CHECK_FOR_INTERRUPTS();
		for (int i = 0; i < count; i++)
		{
			Target	   *target = &targets[i];

			if (target->step == STEP_DONE || target->step == STEP_FAILED)
				continue;
			if (remote_is_under_way(target->remote) && remote_now() > target->until)
				fail(target, "it did not answer in time");
			else if (remote_is_under_way(target->remote))
				list[n++] = target->remote;
			else
			{
				go_on(target, database);
				moved = true;
			}
		}
		if (n == 0 && !moved)
			return;
		if (!moved)
			(void) remote_poll(list, n, USECS_PER_SEC / 10);
	}
}

/*
 * Somebody else's at this participant, but prepared as a user as whom another mapping
 * connects, which sees to it.
 */
static bool
is_seen_to(const Target *targets, int count, const Target *of, const Found *found)
{
	for (int i = 0; i < count; i++)
	{
		if (&targets[i] == of || targets[i].server != of->server || targets[i].step != STEP_DONE)
			continue;
		for (int j = 0; j < targets[i].nfound; j++)
		{
			if (targets[i].found[j].mine && strcmp(targets[i].found[j].text, found->text) == 0)
				return true;
		}
	}
	return false;
}

/* Note how far a participant has come. */
static void
note_target(const Target *target, int64 acked)
{
	static Statement done = {
		"UPDATE coord_internal.twophase_participant SET acked_gtid = greatest(acked_gtid, $2),"
		" seen_at = $3, failed_at = NULL, error = NULL WHERE mapping = $1",
		3, {OIDOID, INT8OID, TIMESTAMPTZOID}
	};
	static Statement failed = {
		"UPDATE coord_internal.twophase_participant SET failed_at = $3, error = $2 WHERE mapping = $1",
		3, {OIDOID, TEXTOID, TIMESTAMPTZOID}
	};
	Datum		values[3];

	values[0] = ObjectIdGetDatum(target->mapping);
	values[2] = TimestampTzGetDatum(GetCurrentTimestamp());
	if (target->step == STEP_DONE)
	{
		values[1] = Int64GetDatum(acked);
		query_run(&done, values, NULL, 0);
	}
	else
	{
		values[1] = CStringGetTextDatum(target->error);
		query_run(&failed, values, NULL, 0);
	}
}

/* What is in doubt at a participant that was asked replaces what was. */
static void
note_in_doubt(const Target *target, const Found **doubts, int ndoubts)
{
	static Statement forget = {
		"DELETE FROM coord_internal.twophase_in_doubt WHERE mapping = $1 AND gid <> ALL ($2)",
		2, {OIDOID, TEXTARRAYOID}
	};
	static Statement insert = {
		"INSERT INTO coord_internal.twophase_in_doubt (gid, mapping, server, prepared_at, owner,"
		" reason, since) VALUES ($1, $2, $3, $4, $5, $6, $7)"
		" ON CONFLICT (gid, server) DO UPDATE SET reason = excluded.reason"
		" WHERE twophase_in_doubt.reason <> excluded.reason",
		7, {TEXTOID, OIDOID, OIDOID, TIMESTAMPTZOID, TEXTOID, TEXTOID, TIMESTAMPTZOID}
	};
	Datum	   *gids = palloc(sizeof(Datum) * Max(ndoubts, 1));
	Datum		values[7];

	for (int i = 0; i < ndoubts; i++)
		gids[i] = CStringGetTextDatum(doubts[i]->text);
	values[0] = ObjectIdGetDatum(target->mapping);
	values[1] = PointerGetDatum(construct_array(gids, ndoubts, TEXTOID, -1, false, TYPALIGN_INT));
	query_run(&forget, values, NULL, 0);
	for (int i = 0; i < ndoubts; i++)
	{
		values[0] = gids[i];
		values[1] = ObjectIdGetDatum(target->mapping);
		values[2] = ObjectIdGetDatum(target->server);
		values[3] = TimestampTzGetDatum(doubts[i]->prepared_at);
		values[4] = CStringGetTextDatum(doubts[i]->owner);
		values[5] = CStringGetTextDatum(doubts[i]->reason);
		values[6] = TimestampTzGetDatum(GetCurrentTimestamp());
		query_run(&insert, values, NULL, 0);
	}
}

/* Decisions of this run that all their participants have acknowledged now. */
static void
note_acknowledged(TwophaseDatabase *database)
{
	static Statement read = {
		"SELECT d.gtid FROM coord_internal.twophase_decision d WHERE d.gtid = ANY ($1)"
		" AND NOT EXISTS (SELECT FROM unnest(d.mappings) m"
		"  JOIN coord_internal.twophase_participant p ON p.mapping = m WHERE p.acked_gtid < d.gtid)",
		1, {INT8ARRAYOID}
	};
	int64		gtids[TWOPHASE_UNACKNOWLEDGED];
	int			count;
	Datum		value;
	uint64		rows;

	LWLockAcquire(&twophase_shared->lock, LW_SHARED);
	count = database->nunacknowledged;
	memcpy(gtids, database->unacknowledged, sizeof(int64) * count);
	LWLockRelease(&twophase_shared->lock);
	if (count == 0)
		return;
	value = query_int8_array(gtids, count);
	rows = query_run_latest(&read, &value, NULL, 0);
	for (uint64 row = 0; row < rows; row++)
	{
		int64		gtid = query_int8(row, 1);

		LWLockAcquire(&twophase_shared->lock, LW_EXCLUSIVE);
		for (int i = 0; i < database->nunacknowledged; i++)
		{
			if (database->unacknowledged[i] == gtid)
				database->unacknowledged[i--] = database->unacknowledged[--database->nunacknowledged];
		}
		LWLockRelease(&twophase_shared->lock);
	}
}

static void
log_resurrection(const Target *target, const Found *found)
{
	static Statement insert = {
		"INSERT INTO coord_internal.twophase_log (at, event, gid, server, outcome, role, reason)"
		" VALUES ($1, 'resurrected', $2, $3, 'committed', $4,"
		" 'prepared again after it had been acknowledged; did it fail over to a standby that was behind?')",
		4, {TIMESTAMPTZOID, TEXTOID, OIDOID, OIDOID}
	};
	Datum		values[4];

	values[0] = TimestampTzGetDatum(GetCurrentTimestamp());
	values[1] = CStringGetTextDatum(found->text);
	values[2] = ObjectIdGetDatum(target->server);
	values[3] = ObjectIdGetDatum(GetUserId());
	query_run(&insert, values, NULL, 0);
}

/* What was done at a participant, for who asked. */
static List *
add_resolutions(List *resolutions, const Target *target)
{
	static const char *const actions[] = {"left", "committed", "rolled back", "in doubt"};

	for (int i = 0; i < target->nfound; i++)
	{
		const Found *found = &target->found[i];
		Resolution *resolution;

		if (found->gone && found->verdict == VERDICT_IN_DOUBT)
			continue;			/* settled by another mapping */
		resolution = palloc0(sizeof(Resolution));
		resolution->gid = pstrdup(found->text);
		resolution->server = target->server;
		resolution->action = actions[found->verdict];
		resolution->detail = found->reason ? pstrdup(found->reason) : NULL;
		if (!found->gone && found->verdict != VERDICT_IN_DOUBT && found->verdict != VERDICT_LEAVE)
			resolution->action = "failed";
		resolutions = lappend(resolutions, resolution);
	}
	if (target->step == STEP_FAILED)
	{
		Resolution *resolution = palloc0(sizeof(Resolution));

		resolution->server = target->server;
		resolution->action = "failed";
		resolution->detail = target->error;
		resolutions = lappend(resolutions, resolution);
	}
	return resolutions;
}

/*
 * End what was prepared under adopted incarnations, now that all that can be asked
 * have said what is prepared.
 */
static void
settle_adopted(Target *targets, int count)
{
	Found	  **found;
	Prepared   *prepared;
	int			n = 0;
	int			most = 0;

	for (int i = 0; i < count; i++)
		most += targets[i].nfound;
	found = palloc(sizeof(Found *) * Max(most, 1));
	prepared = palloc0(sizeof(Prepared) * Max(most, 1));
	for (int i = 0; i < count; i++)
	{
		for (int j = 0; j < targets[i].nfound && targets[i].step == STEP_DONE; j++)
		{
			Found	   *one = &targets[i].found[j];

			if (!one->adopted || one->gone)
				continue;
			prepared[n].text = one->text;
			prepared[n].gid = one->gid;
			prepared[n].server = targets[i].server;
			prepared[n].role = targets[i].role;
			prepared[n].mine = one->mine;
			found[n++] = one;
		}
	}
	if (n == 0)
		return;
	settle(prepared, n);
	for (int i = 0; i < n; i++)
	{
		found[i]->reason = prepared[i].reason;
		if (!prepared[i].settled)
			continue;
		found[i]->verdict = prepared[i].committed ? VERDICT_COMMIT : VERDICT_ROLL_BACK;

		/* It may have been seen by several mappings. */
		for (int j = 0; j < n; j++)
			found[j]->gone = found[j]->gone || strcmp(found[j]->text, found[i]->text) == 0;
	}
}

/* One look at a time in this database; released with the transaction. */
void
resolve_take_turn(void)
{
	LOCKTAG		tag;

	SET_LOCKTAG_OBJECT(tag, MyDatabaseId, ExtensionRelationId, get_extension_oid("coord", false),
					   RESOLVER_LOCK);
	(void) LockAcquire(&tag, ExclusiveLock, false, false);
}

/*
 * A participant whose mapping was dropped, which was refused as long as something
 * needed it (twophase_drop.c), is none any more.
 */
static void
forget_dropped(void)
{
	static Statement forget = {
		"DELETE FROM coord_internal.twophase_participant p"
		" WHERE NOT EXISTS (SELECT FROM pg_user_mapping m WHERE m.oid = p.mapping)"
		" AND NOT EXISTS (SELECT FROM coord_internal.twophase_in_doubt i WHERE i.mapping = p.mapping)"
		" AND NOT EXISTS (SELECT FROM coord_internal.twophase_decision d, coord_internal.twophase_figures() g"
		"  WHERE d.gtid > p.acked_gtid AND p.mapping = ANY (d.mappings)"
		"  AND CASE WHEN d.gtid >= g.first_gtid AND NOT g.many"
		"      THEN d.gtid IN (SELECT coord_internal.twophase_unacknowledged()) ELSE true END)",
		0, {0}
	};
	QueryScope	scope;

	query_begin(&scope);
	query_run(&forget, NULL, NULL, 0);
	query_end(&scope);
}

/* Ask all, as many at a time as are waited for together. */
static void
ask_in_pieces(Target *targets, int count, TwophaseDatabase *database)
{
	PG_TRY();
	{
		for (int first = 0; first < count; first += COORD_MAX_PARTICIPANTS)
		{
			int			n = Min(count - first, COORD_MAX_PARTICIPANTS);

			for (int i = first; i < first + n; i++)
				open_target(&targets[i]);
			ask_all(&targets[first], n, database);
		}
	}
	PG_CATCH();
	{
		/* The locks over there must not stay. */
		for (int i = 0; i < count; i++)
		{
			if (targets[i].remote != NULL)
				remote_close(targets[i].remote);
		}
		PG_RE_THROW();
	}
	PG_END_TRY();
}

/*
 * Look at all participants that are written down, or at one server's, and finish
 * there what is decided.  In "resolutions", unless NULL, what was done.  Returns
 * whether nothing is left to be tried again soon.  Requires a transaction.
 */
bool
resolve(TwophaseDatabase *database, Oid server, List **resolutions)
{
	QueryScope	scope;
	Target	   *targets;
	int			count;
	bool		all = true;
	int			unresolved = 0;
	int			unreachable = 0;

	resolve_take_turn();
	forget_dropped();
	targets = read_targets(&count, server);
	ask_in_pieces(targets, count, database);
	if (!OidIsValid(server))
		settle_adopted(targets, count);
	DEBUG_POINT("resolver_before_note");

	query_begin(&scope);
	for (int i = 0; i < count; i++)
	{
		Target	   *target = &targets[i];
		const Found **doubts = palloc(sizeof(Found *) * Max(target->nfound, 1));
		int			ndoubts = 0;
		int64		acked = target->seen_gtid;

		all = all && target->step == STEP_DONE;
		unreachable += target->step == STEP_DONE ? 0 : 1;
		for (int j = 0; j < target->nfound && target->step == STEP_DONE; j++)
		{
			Found	   *found = &target->found[j];

			if (found->resurrected)
				log_resurrection(target, found);
			if (found->gone)
				continue;
			if (found->verdict == VERDICT_IN_DOUBT)
			{
				if (found->mine || !is_seen_to(targets, count, target, found))
					doubts[ndoubts++] = found;
			}
			else
				all = false;
			if (found->decided)
				acked = Min(acked, found->gid.gtid - 1);
		}
		unresolved += ndoubts;
		if (target->step == STEP_DONE)
			note_in_doubt(target, doubts, ndoubts);
		note_target(target, acked);
	}
	note_acknowledged(database);
	query_end(&scope);
	for (int i = 0; i < count && resolutions != NULL; i++)
		*resolutions = add_resolutions(*resolutions, &targets[i]);
	if (!OidIsValid(server))
	{
		LWLockAcquire(&twophase_shared->lock, LW_EXCLUSIVE);
		database->nunresolved = unresolved;
		database->nunreachable = unreachable;
		database->looked = true;
		if (all && database->nunacknowledged < TWOPHASE_UNACKNOWLEDGED)
			database->many = false;
		all = all && database->nunacknowledged == 0 && !database->many;
		LWLockRelease(&twophase_shared->lock);
	}
	return all;
}
