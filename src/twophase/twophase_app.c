/*-------------------------------------------------------------------------
 *
 * twophase_app.c
 *	  Two-phase commits whose participants are not Postgres: functions, workers
 *	  outside, and servers beside them.
 *
 * An application begins one, enlists participants, and has it committed or aborted.
 * The row in coord_internal.twophase_app is the decision:
 *
 * 1. It is committed or aborted by one UPDATE, which holds only for a row that is
 *	  undecided, in a transaction that holds its lock.  So whoever comes first decides:
 *	  the session that has all votes, one that says no, an operator, or the resolver
 *	  when the time is up.
 * 2. The same transaction tells the sagas that carry the participants (see
 *	  saga_participant.c).  They go on by themselves; the session that decided only
 *	  lends them a hand.
 * 3. A participant that said yes waits for that, however long it takes.  It is never
 *	  long: who is undecided when the time is up is aborted, whether its session lives
 *	  or not (presumed abort).
 *
 * CALL coord.twophase_commit() is in app_commit.c.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"

#include "base/access.h"
#include "base/check.h"
#include "base/clock.h"
#include "base/compat.h"
#include "base/errors.h"
#include "base/guc.h"
#include "base/installation.h"
#include "base/json.h"
#include "base/query.h"
#include "base/transition.h"
#include "lock/lock.h"
#include "saga/saga.h"
#include "twophase/branch.h"
#include "twophase/remote_args.h"
#include "twophase/twophase_app.h"
#include "twophase/twophase_shared.h"

/* Taken up at a time by who looks for those whose time is up, or that are old. */
#define SWEEP 100

#define DEFAULT_TIMEOUT_US (60 * USECS_PER_SEC)

PG_FUNCTION_INFO_V1(coord_twophase_begin);
PG_FUNCTION_INFO_V1(coord_twophase_enlist);
PG_FUNCTION_INFO_V1(coord_twophase_abort);

static const char *const states[] = {
	"open", "preparing", "committed", "aborted", NULL
};

static const char *const events[] = {
	"prepare", "commit", "refuse", "expire", "abort", NULL
};

static const Transition transitions[] = {
	{APP_OPEN, APP_EVENT_PREPARE, APP_PREPARING,
	"CALL coord.twophase_commit(): participants are asked to prepare, and no other can be enlisted"},
	{APP_OPEN, APP_EVENT_EXPIRE, APP_ABORTED,
	"its time is up"},
	{APP_OPEN, APP_EVENT_ABORT, APP_ABORTED,
	"coord.twophase_abort()"},
	{APP_PREPARING, APP_EVENT_COMMIT, APP_COMMITTED,
	"every participant said yes"},
	{APP_PREPARING, APP_EVENT_REFUSE, APP_ABORTED,
	"a participant said no"},
	{APP_PREPARING, APP_EVENT_EXPIRE, APP_ABORTED,
	"its time is up, and it is not decided"},
	{APP_PREPARING, APP_EVENT_ABORT, APP_ABORTED,
	"coord.twophase_abort()"},
};

static const StateMachine machine = {
	"twophase", states, events, transitions, lengthof(transitions)
};

/* Called from _PG_init. */
void
twophase_register_machine(void)
{
	machine_register(&machine);
}

/* ----------------------------------------------------------------
 *		The rows
 * ----------------------------------------------------------------
 */

#define APP_COLUMNS \
	"SELECT gtid, owner, status, deadline_at, correlation_id, reason" \
	" FROM coord_internal.twophase_app"

/* Row "row" of the last result. */
static void
take_row(MemoryContext context, uint64 row, App *app)
{
	bool		isnull;
	Datum		value;

	app->gtid = query_int8(row, 1);
	app->owner = DatumGetObjectId(query_value(row, 2, &isnull));
	app->status = machine_state(&machine, query_text(context, row, 3));
	app->deadline = query_time(row, 4);
	value = query_value(row, 5, &isnull);
	app->has_correlation = !isnull;
	if (!isnull)
		app->correlation_id = *DatumGetUUIDP(value);
	app->reason = query_text(context, row, 6);
}

/* The row as it is now; false when there is none. */
bool
app_read(int64 gtid, AppLock lock, App *app)
{
	static Statement read = {APP_COLUMNS " WHERE gtid = $1", 1, {INT8OID}};
	static Statement share = {APP_COLUMNS " WHERE gtid = $1 FOR SHARE", 1, {INT8OID}};
	static Statement update = {APP_COLUMNS " WHERE gtid = $1 FOR UPDATE", 1, {INT8OID}};
	MemoryContext context = CurrentMemoryContext;
	QueryScope	scope;
	Datum		value = Int64GetDatum(gtid);
	bool		found;

	query_begin(&scope);
	if (lock == APP_LOCK_NONE)
		found = query_run_latest(&read, &value, NULL, 1) > 0;
	else
		found = query_write_latest(lock == APP_LOCK_SHARE ? &share : &update, &value, NULL) > 0;
	if (found)
		take_row(context, 0, app);
	query_end(&scope);
	return found;
}

/* The same for who may use it; 42704 for all others. */
void
app_read_mine(FunctionCallInfo fcinfo, AppLock lock, App *app)
{
	int64		gtid;

	check_required(fcinfo, 0, "gtid");
	gtid = PG_GETARG_INT64(0);
	installation_check();
	if (!app_read(gtid, APP_LOCK_NONE, app) ||
		!access_may_act(app->owner, "twophase", NULL) ||
		(lock != APP_LOCK_NONE && !app_read(gtid, lock, app)))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("transaction " INT64_FORMAT " does not exist", gtid),
				 errhint("coord.twophase_begin() makes one; what is decided is kept for coord.twophase_retention.")));
}

/*
 * The only place where the status is written.  The row is locked, so it is what it
 * was read as; "decision" is the id under which servers were prepared, or 0.
 */
void
app_set_status(App *app, AppEvent event, const char *reason, int64 decision)
{
	static Statement update = {
		"UPDATE coord_internal.twophase_app SET status = $3, reason = $4, decision = $5,"
		" decided_at = $6 WHERE gtid = $1 AND status = $2",
		6, {INT8OID, TEXTOID, TEXTOID, TEXTOID, INT8OID, TIMESTAMPTZOID}
	};
	AppStatus	next = machine_next(&machine, app->status, event);
	QueryScope	scope;
	Datum		values[6];
	bool		nulls[6] = {false};

	query_begin(&scope);
	values[0] = Int64GetDatum(app->gtid);
	values[1] = CStringGetTextDatum(states[app->status]);
	values[2] = CStringGetTextDatum(states[next]);
	nulls[3] = reason == NULL;
	if (reason != NULL)
		values[3] = CStringGetTextDatum(reason);
	values[4] = Int64GetDatum(decision);
	nulls[4] = decision == 0;
	values[5] = TimestampTzGetDatum(clock_now());
	nulls[5] = next != APP_COMMITTED && next != APP_ABORTED;
	if (query_write_latest(&update, values, nulls) != 1)
		elog(ERROR, "transaction " INT64_FORMAT " was locked and has changed", app->gtid);
	query_end(&scope);
	app->status = next;
	app->reason = reason ? pstrdup(reason) : NULL;
	doorbell_finished_at_commit(app->gtid);
}

/* Who takes part, in the order of their names. */
AppParticipant *
app_participants(int64 gtid, int *count)
{
	static Statement read = {
		"SELECT participant, owner, coalesce(definition, 0), coalesce(saga_id, 0), server::text,"
		" sql, payload FROM coord_internal.twophase_app_participant WHERE gtid = $1"
		" ORDER BY participant",
		1, {INT8OID}
	};
	MemoryContext context = CurrentMemoryContext;
	QueryScope	scope;
	Datum		value = Int64GetDatum(gtid);
	AppParticipant *list;
	uint64		rows;

	query_begin(&scope);
	rows = query_run_latest(&read, &value, NULL, 0);
	list = MemoryContextAllocZero(context, sizeof(AppParticipant) * Max(rows, 1));
	for (uint64 i = 0; i < rows; i++)
	{
		bool		isnull;

		list[i].name = query_text(context, i, 1);
		list[i].owner = DatumGetObjectId(query_value(i, 2, &isnull));
		list[i].definition = query_int8(i, 3);
		list[i].saga = query_int8(i, 4);
		list[i].server = query_text(context, i, 5);
		list[i].sql = query_text(context, i, 6);
		list[i].payload = query_jsonb(context, i, 7);
	}
	query_end(&scope);
	*count = (int) rows;
	return list;
}

/* The decision to abort; the row is locked. */
void
app_abort(App *app, AppEvent event, Oid role, const char *reason)
{
	int			count;
	AppParticipant *list = app_participants(app->gtid, &count);

	app_set_status(app, event, reason, 0);
	for (int i = 0; i < count; i++)
	{
		if (list[i].saga != 0)
			saga_participant_decide(list[i].saga, false, role, reason);
	}
}

/* What became of it, or NULL: it is none of these. */
const char *
twophase_app_outcome(int64 gtid)
{
	App			app;

	if (!app_read(gtid, APP_LOCK_NONE, &app))
		return NULL;
	if (!access_may_act(app.owner, "twophase", NULL))
		return "unknown";
	return app.status == APP_OPEN || app.status == APP_PREPARING ? "pending" : states[app.status];
}

/*
 * Abort those whose time is up, and forget those that were decided long ago.  Returns
 * when the next one's time is up; 0: never.  Waits for nobody: who has one locked is
 * just deciding it.  Requires a transaction and a snapshot.
 */
TimestampTz
twophase_app_sweep(void)
{
	static Statement due = {
		APP_COLUMNS " WHERE status IN ('open', 'preparing') AND deadline_at <= $1"
		" ORDER BY deadline_at LIMIT $2 FOR UPDATE SKIP LOCKED",
		2, {TIMESTAMPTZOID, INT4OID}
	};
	static Statement forget = {
		"WITH old AS (DELETE FROM coord_internal.twophase_app WHERE gtid IN"
		"  (SELECT a.gtid FROM coord_internal.twophase_app a WHERE a.decided_at < $1"
		"   AND NOT EXISTS (SELECT FROM coord_internal.twophase_app_participant p"
		"    JOIN coord_internal.saga s ON s.id = p.saga_id WHERE p.gtid = a.gtid)"
		"   ORDER BY a.decided_at LIMIT $2 FOR UPDATE SKIP LOCKED) RETURNING gtid)"
		" DELETE FROM coord_internal.twophase_app_participant p USING old WHERE p.gtid = old.gtid",
		2, {TIMESTAMPTZOID, INT4OID}
	};
	static Statement next = {
		"SELECT min(deadline_at) FROM coord_internal.twophase_app"
		" WHERE status IN ('open', 'preparing')", 0, {0}
	};
	MemoryContext context = CurrentMemoryContext;
	TimestampTz now = clock_now();
	TimestampTz result;
	QueryScope	scope;
	Datum		values[2];
	App			apps[SWEEP];
	int			count;

	query_begin(&scope);
	values[0] = TimestampTzGetDatum(now);
	values[1] = Int32GetDatum(SWEEP);
	count = (int) query_write_latest(&due, values, NULL);
	for (int i = 0; i < count; i++)
		take_row(context, i, &apps[i]);
	values[0] = TimestampTzGetDatum(now - guc_twophase_retention * USECS_PER_MINUTE);
	query_write_latest(&forget, values, NULL);
	query_end(&scope);
	for (int i = 0; i < count; i++)
		app_abort(&apps[i], APP_EVENT_EXPIRE, apps[i].owner, "its time is up");

	query_begin(&scope);
	(void) query_run_latest(&next, NULL, NULL, 1);
	result = query_time(0, 1);
	query_end(&scope);
	return result;
}

/* ----------------------------------------------------------------
 *		The SQL functions
 * ----------------------------------------------------------------
 */

/* A transaction that does not act, or may not. */
static void
check_may_act(const char *function)
{
	installation_check();
	check_not_in_recovery(function);
	installation_check_not_foreign();
}

/* coord.twophase_begin(label, timeout) */
Datum
coord_twophase_begin(PG_FUNCTION_ARGS)
{
	static Statement insert = {
		"INSERT INTO coord_internal.twophase_app"
		" (gtid, owner, label, correlation_id, created_at, deadline_at)"
		" VALUES ($1, $2, $3, nullif($4, '')::uuid, $5, $6)",
		6, {INT8OID, OIDOID, TEXTOID, TEXTOID, TIMESTAMPTZOID, TIMESTAMPTZOID}
	};
	char	   *label = check_optional_text(fcinfo, 0);
	int64		us = DEFAULT_TIMEOUT_US;
	int64		gtid;
	QueryScope	scope;
	Datum		values[6];
	bool		nulls[6] = {false};

	if (label != NULL)
		check_name("label", label);
	if (!PG_ARGISNULL(1))
	{
		Interval   *timeout = PG_GETARG_INTERVAL_P(1);

		us = coord_interval_is_finite(timeout) ? clock_interval_us(timeout) : -1;
		if (us <= 0)
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("timeout must be greater than 0 and finite")));
	}
	if (us >= guc_twophase_retention * USECS_PER_MINUTE)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("timeout must be less than coord.twophase_retention")));
	check_may_act("coord.twophase_begin()");
	gtid = lock_token_next();
	query_begin(&scope);
	values[0] = Int64GetDatum(gtid);
	values[1] = ObjectIdGetDatum(scope.identity.user);
	nulls[2] = label == NULL;
	if (label != NULL)
		values[2] = CStringGetTextDatum(label);
	values[3] = CStringGetTextDatum(guc_correlation_id ? guc_correlation_id : "");
	values[4] = TimestampTzGetDatum(clock_now());
	values[5] = TimestampTzGetDatum(clock_now() + us);
	query_run(&insert, values, nulls, 0);
	query_end(&scope);

	/* Should the transaction be rolled back, it comes for nothing. */
	twophase_want_resolver(twophase_database(), GetCurrentTimestamp() + us);
	PG_RETURN_INT64(gtid);
}

/* 22023 for a combination of arguments that makes no participant. */
static void
bad_participant(const char *detail)
{
	ereport(ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			 errmsg("this makes no participant"),
			 errdetail("%s", detail),
			 errhint("A participant is functions of this database, tasks of a queue, or SQL for a server.")));
}

/* What is handed over to functions or workers is an object without coord's own members. */
static void
check_payload(Jsonb *payload)
{
	static const char *const members[] = {"gtid", "participant", "idempotency_key"};
	JsonbValue	value;

	if (!json_is_object(payload))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("payload must be a JSON object")));
	for (int i = 0; i < lengthof(members); i++)
	{
		if (json_get(payload, members[i], &value) != NULL)
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("payload must not have a member \"%s\"", members[i]),
					 errdetail("The participant is given it by coord.")));
	}
}

/* 55000 for one that takes in nobody any more. */
static void
check_open(const App *app)
{
	if (app->status != APP_OPEN)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("transaction " INT64_FORMAT " is %s", app->gtid, states[app->status]),
				 errdetail("Participants are enlisted before they are asked to prepare."),
				 errhint("Begin another one with coord.twophase_begin().")));
	if (app->deadline <= clock_now())
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("the time of transaction " INT64_FORMAT " is up", app->gtid),
				 errhint("Begin another one with coord.twophase_begin(), with a longer timeout.")));
}

/* coord.twophase_enlist(gtid, participant, prepare, commit, abort, queue, server, payload) */
Datum
coord_twophase_enlist(PG_FUNCTION_ARGS)
{
	static Statement insert = {
		"INSERT INTO coord_internal.twophase_app_participant"
		" (gtid, participant, owner, definition, server, sql, payload)"
		" VALUES ($1, $2, $3, $4, $5, $6, $7) ON CONFLICT (gtid, participant) DO NOTHING",
		7, {INT8OID, TEXTOID, OIDOID, INT8OID, NAMEOID, TEXTOID, JSONBOID}
	};
	static Statement same = {
		"SELECT FROM coord_internal.twophase_app_participant WHERE gtid = $1 AND participant = $2"
		" AND owner = $3 AND (definition, server, sql, payload)"
		" IS NOT DISTINCT FROM ($4::bigint, $5::name, $6::text, $7::jsonb)",
		7, {INT8OID, TEXTOID, OIDOID, INT8OID, NAMEOID, TEXTOID, JSONBOID}
	};
	Oid			user = GetUserId();
	App			app;
	char	   *participant;
	char	   *prepare;
	char	   *commit;
	char	   *undo;
	char	   *queue;
	int64		definition = 0;
	QueryScope	scope;
	Datum		values[7];
	bool		nulls[7] = {false};
	bool		known;

	check_required(fcinfo, 0, "gtid");
	participant = check_text(fcinfo, 1, "participant");
	check_name("participant", participant);
	prepare = check_text(fcinfo, 2, "prepare");
	commit = check_optional_text(fcinfo, 3);
	undo = check_optional_text(fcinfo, 4);
	queue = check_optional_text(fcinfo, 5);
	check_may_act("coord.twophase_enlist()");
	if (queue != NULL && !PG_ARGISNULL(6))
		bad_participant("It has a queue or a server, not both.");
	app_read_mine(fcinfo, APP_LOCK_SHARE, &app);
	check_open(&app);
	if (!PG_ARGISNULL(6))
	{
		int			nargs;

		if (commit != NULL || undo != NULL)
			bad_participant("With a server there is no commit and no abort: PostgreSQL's own do that.");
		twophase_check_server(NameStr(*PG_GETARG_NAME(6)));
		branch_check_statement(prepare);
		if (!PG_ARGISNULL(7))
			(void) remote_args(PG_GETARG_JSONB_P(7), &nargs);
	}
	else
	{
		if (!PG_ARGISNULL(7))
			check_payload(PG_GETARG_JSONB_P(7));
		if (queue != NULL)
		{
			/* A worker tells by the phase, too. */
			commit = commit ? commit : prepare;
			undo = undo ? undo : prepare;
		}
		definition = saga_participant_define(prepare, commit, undo, queue);
	}

	query_begin(&scope);
	values[0] = Int64GetDatum(app.gtid);
	values[1] = CStringGetTextDatum(participant);
	values[2] = ObjectIdGetDatum(user);
	values[3] = Int64GetDatum(definition);
	nulls[3] = definition == 0;
	nulls[4] = PG_ARGISNULL(6);
	values[4] = PG_GETARG_DATUM(6);
	nulls[5] = nulls[4];
	if (!nulls[5])
		values[5] = CStringGetTextDatum(prepare);
	nulls[6] = PG_ARGISNULL(7);
	values[6] = PG_GETARG_DATUM(7);
	known = query_run(&insert, values, nulls, 0) == 0;
	if (known && query_run_latest(&same, values, nulls, 1) == 0)
		ereport(ERROR,
				(errcode(ERRCODE_DUPLICATE_OBJECT),
				 errmsg("transaction " INT64_FORMAT " has another participant \"%s\"",
						app.gtid, participant)));
	query_end(&scope);
	PG_RETURN_VOID();
}

/* coord.twophase_abort(gtid, reason) */
Datum
coord_twophase_abort(PG_FUNCTION_ARGS)
{
	char	   *reason = check_optional_text(fcinfo, 1);
	App			app;

	check_required(fcinfo, 0, "gtid");
	check_may_act("coord.twophase_abort()");
	app_read_mine(fcinfo, APP_LOCK_UPDATE, &app);
	if (app.status == APP_COMMITTED)
		ereport(ERROR,
				(errcode(ERRCODE_COORD_ILLEGAL_TRANSITION),
				 errmsg("transaction " INT64_FORMAT " is committed", app.gtid),
				 errdetail("What was decided stays.")));
	if (app.status != APP_ABORTED)
		app_abort(&app, APP_EVENT_ABORT, GetUserId(), reason ? reason : "aborted");
	PG_RETURN_TEXT_P(cstring_to_text(states[app.status]));
}
