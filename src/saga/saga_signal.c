/*-------------------------------------------------------------------------
 *
 * saga_signal.c
 *	  coord.saga_signal(): something has happened outside that a saga waits for.
 *
 * A signal is a row of its own and a word in the saga's inbox, so it may come
 * before the saga waits for it, and never waits for a running step.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "utils/builtins.h"

#include "base/access.h"
#include "base/check.h"
#include "base/clock.h"
#include "base/installation.h"
#include "base/query.h"
#include "saga/saga_task.h"

PG_FUNCTION_INFO_V1(coord_saga_signal);

/* 42704 unless a step of the definition waits for the signal. */
static void
check_signal(int64 id, const SagaDef *def, const char *name)
{
	List	   *names = NIL;
	char	   *hint;

	for (int i = 0; i < def->nsteps; i++)
	{
		if (def->steps[i].kind != STEP_SIGNAL)
			continue;
		if (strcmp(def->steps[i].signal, name) == 0)
			return;
		names = lappend(names, def->steps[i].signal);
	}
	hint = check_near_names(name, names);
	ereport(ERROR,
			(errcode(ERRCODE_UNDEFINED_OBJECT),
			 errmsg("no step of saga " INT64_FORMAT " waits for signal \"%s\"", id, name),
			 hint ? errhint("%s", hint) :
			 names == NIL ? errdetail("No step of saga \"%s\" waits for a signal.", def->name) : 0));
}

/* 42501 for what only the coordinator says, to participants of two-phase commits. */
static void
check_not_participant(int64 id, const SagaDef *def)
{
	if (def->participant)
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("saga " INT64_FORMAT " is a participant of a two-phase commit", id),
				 errdetail("It may not decide alone."),
				 errhint("See coord.twophase_participants, coord.twophase_commit() and coord.twophase_abort().")));
}

/* The coordinator's word to a participant, in the transaction that decides. */
void
saga_send_signal(int64 id, const char *signal, Oid role)
{
	static Statement insert = {
		"WITH s AS (INSERT INTO coord_internal.saga_signal (saga_id, signal, signal_id, role, at)"
		" VALUES ($1, $2, $2, $3, $4) ON CONFLICT (saga_id, signal, signal_id) DO NOTHING)"
		" SELECT priority, owner FROM coord_internal.saga WHERE id = $1",
		4, {INT8OID, TEXTOID, OIDOID, TIMESTAMPTZOID}
	};
	QueryScope	scope;
	Datum		values[4];
	int			priority = 0;
	Oid			owner = InvalidOid;

	query_begin(&scope);
	values[0] = Int64GetDatum(id);
	values[1] = CStringGetTextDatum(signal);
	values[2] = ObjectIdGetDatum(role);
	values[3] = TimestampTzGetDatum(clock_now());
	if (query_write_latest(&insert, values, NULL) > 0)
	{
		bool		isnull;

		priority = query_int4(0, 1);
		owner = DatumGetObjectId(query_value(0, 2, &isnull));
	}
	query_end(&scope);
	if (OidIsValid(owner))
		saga_tell(&id, &priority, &owner, 1);
}

/* coord.saga_signal(id, signal, payload, signal_id): the saga's status. */
Datum
coord_saga_signal(PG_FUNCTION_ARGS)
{
	static Statement read = {
		"SELECT definition, priority, owner FROM coord_internal.saga WHERE id = $1",
		1, {INT8OID}
	};
	static Statement insert = {
		"INSERT INTO coord_internal.saga_signal (saga_id, signal, signal_id, payload, role, at)"
		" VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT (saga_id, signal, signal_id) DO NOTHING",
		6, {INT8OID, TEXTOID, TEXTOID, JSONBOID, OIDOID, TIMESTAMPTZOID}
	};
	Oid			user = GetUserId();
	int64		definition = 0;
	int64		id;
	char	   *signal;
	char	   *signal_id;
	char	   *status;
	int			priority = 0;
	Oid			owner = InvalidOid;
	QueryScope	scope;
	Datum		values[6];
	bool		nulls[6] = {false};
	bool		changed;

	check_required(fcinfo, 0, "id");
	id = PG_GETARG_INT64(0);
	signal = check_text(fcinfo, 1, "signal");
	signal_id = check_optional_text(fcinfo, 3);
	if (signal_id != NULL)
		check_name("signal_id", signal_id);
	installation_check();
	check_not_in_recovery("coord.saga_signal()");
	status = saga_status_or_error(id);
	if (saga_status_is_final(machine_state(&saga_machine, status)))
		PG_RETURN_TEXT_P(cstring_to_text(status));

	query_begin(&scope);
	values[0] = Int64GetDatum(id);
	if (query_run_latest(&read, values, NULL, 1) > 0)
	{
		bool		isnull;

		definition = DatumGetInt64(query_value(0, 1, &isnull));
		priority = DatumGetInt32(query_value(0, 2, &isnull));
		owner = DatumGetObjectId(query_value(0, 3, &isnull));
	}
	query_end(&scope);
	if (definition == 0)		/* finished meanwhile */
		PG_RETURN_TEXT_P(cstring_to_text(saga_status_or_error(id)));
	check_not_participant(id, saga_definition_by_id(definition));
	check_signal(id, saga_definition_by_id(definition), signal);

	query_begin(&scope);
	values[0] = Int64GetDatum(id);
	values[1] = CStringGetTextDatum(signal);
	nulls[2] = signal_id == NULL;
	if (signal_id != NULL)
		values[2] = CStringGetTextDatum(signal_id);
	nulls[3] = PG_ARGISNULL(2);
	if (!nulls[3])
		values[3] = PG_GETARG_DATUM(2);
	values[4] = ObjectIdGetDatum(user);
	values[5] = TimestampTzGetDatum(clock_now());
	changed = query_run(&insert, values, nulls, 0) > 0;
	query_end(&scope);
	if (changed)
		saga_tell(&id, &priority, &owner, 1);
	PG_RETURN_TEXT_P(cstring_to_text(status));
}
