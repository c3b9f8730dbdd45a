/*-------------------------------------------------------------------------
 *
 * twophase_verbs.c
 *	  What became of a transaction, and what operators do about it.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "fmgr.h"
#include "foreign/foreign.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/tuplestore.h"
#include "utils/lsyscache.h"

#include "base/access.h"
#include "base/check.h"
#include "base/installation.h"
#include "base/query.h"
#include "lock/lock.h"
#include "twophase/branch.h"
#include "twophase/repair.h"
#include "twophase/resolve.h"
#include "twophase/twophase_app.h"
#include "twophase/twophase_shared.h"

PG_FUNCTION_INFO_V1(coord_twophase_outcome);
PG_FUNCTION_INFO_V1(coord_twophase_resolve);
PG_FUNCTION_INFO_V1(coord_internal_gid_gtid);

/* Is there a decision to commit it?  As of now, whatever snapshot the caller has. */
static bool
is_decided(int64 gtid)
{
	static Statement read = {
		"SELECT FROM coord_internal.twophase_decision WHERE gtid = $1", 1, {INT8OID}
	};
	QueryScope	scope;
	Datum		value = Int64GetDatum(gtid);
	bool		result;

	query_begin(&scope);
	result = query_run_latest(&read, &value, NULL, 1) > 0;
	query_end(&scope);
	return result;
}

/* Is something of it prepared somewhere, and not ours to decide? */
static bool
is_in_doubt(int64 gtid)
{
	static Statement read = {
		"SELECT FROM coord_internal.twophase_in_doubt WHERE coord_internal.gid_gtid(gid) = $1",
		1, {INT8OID}
	};
	QueryScope	scope;
	Datum		value = Int64GetDatum(gtid);
	bool		result;

	query_begin(&scope);
	result = query_run_latest(&read, &value, NULL, 1) > 0;
	query_end(&scope);
	return result;
}

/*
 * coord.twophase_outcome(gtid).  Who is active is read before the decisions, see
 * twophase_shared.c.
 */
Datum
coord_twophase_outcome(PG_FUNCTION_ARGS)
{
	int64		gtid;
	bool		active;
	const char *result;

	check_required(fcinfo, 0, "gtid");
	gtid = PG_GETARG_INT64(0);
	check_not_in_recovery("coord.twophase_outcome()");
	result = twophase_app_outcome(gtid);
	if (result != NULL)
		PG_RETURN_TEXT_P(cstring_to_text(result));
	branch_be_ready();
	active = twophase_is_active(gtid);
	if (is_decided(gtid))
		result = active ? "pending" : "committed";
	else if (active)
		result = "pending";
	else if (gtid <= resolve_forgotten() || gtid > lock_token_current())
		result = "unknown";
	else if (gtid < twophase_database()->began_gtid)
	{
		const char *noted = repair_noted_outcome_of(gtid);

		result = is_in_doubt(gtid) ? "in_doubt" : noted ? noted : "unknown";
	}
	else
		result = "aborted";
	PG_RETURN_TEXT_P(cstring_to_text(result));
}

/* coord.twophase_resolve(server): look now. */
Datum
coord_twophase_resolve(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	List	   *resolutions = NIL;
	Oid			server = InvalidOid;
	ListCell   *cell;

	repair_check("coord.twophase_resolve");

	/* What it does there is not undone, and the resolver waits for its turn. */
	if (IsTransactionBlock())
		ereport(ERROR,
				(errcode(ERRCODE_ACTIVE_SQL_TRANSACTION),
				 errmsg("coord.twophase_resolve() cannot run inside a transaction block")));
	if (!PG_ARGISNULL(0))
		server = GetForeignServerByName(NameStr(*PG_GETARG_NAME(0)), false)->serverid;
	InitMaterializedSRF(fcinfo, 0);
	(void) resolve(twophase_database(), server, &resolutions);
	(void) twophase_app_sweep();
	foreach(cell, resolutions)
	{
		Resolution *resolution = lfirst(cell);
		ForeignServer *foreign = GetForeignServerExtended(resolution->server, FSV_MISSING_OK);
		Datum		values[4];
		bool		nulls[4] = {false};
		NameData	name;

		nulls[0] = resolution->gid == NULL;
		if (resolution->gid != NULL)
			values[0] = CStringGetTextDatum(resolution->gid);
		namestrcpy(&name, foreign ? foreign->servername : "");
		values[1] = NameGetDatum(&name);
		nulls[1] = foreign == NULL;
		values[2] = CStringGetTextDatum(resolution->action);
		nulls[3] = resolution->detail == NULL;
		if (resolution->detail != NULL)
			values[3] = CStringGetTextDatum(resolution->detail);
		tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, nulls);
	}
	return (Datum) 0;
}

/* The global transaction that a name bears; NULL: it is not one of ours. */
Datum
coord_internal_gid_gtid(PG_FUNCTION_ARGS)
{
	Gid			gid;

	if (PG_ARGISNULL(0) || !gid_read(text_to_cstring(PG_GETARG_TEXT_PP(0)), &gid))
		PG_RETURN_NULL();
	PG_RETURN_INT64(gid.gtid);
}
