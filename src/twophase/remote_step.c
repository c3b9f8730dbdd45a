/*-------------------------------------------------------------------------
 *
 * remote_step.c
 *	  A saga's step at a participant.
 *
 * The step's function runs in the participant's transaction, which ends together
 * with the one that records the step: so it is exactly once, like a local step.
 * The steps of a batch share one transaction there.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "utils/builtins.h"
#include "utils/memutils.h"

#include "base/errors.h"
#include "twophase/branch.h"
#include "twophase/twophase.h"

/* What a connection's failure looks like, as against a function's. */
static bool
is_of_connection(const char *sqlstate)
{
	return strncmp(sqlstate, "08", 2) == 0 || strncmp(sqlstate, "57P", 3) == 0 ||
		strcmp(sqlstate, "53300") == 0;
}

/*
 * Call a function f(jsonb) at a participant, as the current user's mapping has it.
 * Its error is raised with the SQLSTATE it has there, so that a step's retry_on can
 * tell; ZC010 if it is the connection's.
 */
Jsonb *
twophase_call(const char *server, const char *function, Jsonb *document)
{
	MemoryContext context = CurrentMemoryContext;
	char	   *sql = psprintf("SELECT %s($1::pg_catalog.jsonb)", function);
	const char *values[1];
	Branch	   *branch;
	PGresult   *volatile result = NULL;
	Oid			type;

	values[0] = JsonbToCString(NULL, &document->root, VARSIZE(document));
	branch = branch_enlist(server, PG_INT64_MAX / 2);
	PG_TRY();
	{
		result = branch_execute(branch, sql, 1, values, PG_INT64_MAX / 2, true, true);
	}
	PG_CATCH();
	{
		const char *sqlstate = remote_sqlstate(branch->remote);
		ErrorData  *error;

		MemoryContextSwitchTo(context);
		error = CopyErrorData();
		if (error->sqlerrcode == ERRCODE_COORD_PARTICIPANT_FAILED && sqlstate != NULL &&
			strlen(sqlstate) == 5 && !is_of_connection(sqlstate))
		{
			FlushErrorState();
			error->sqlerrcode = MAKE_SQLSTATE(sqlstate[0], sqlstate[1], sqlstate[2], sqlstate[3],
											  sqlstate[4]);
			ReThrowError(error);
		}
		PG_RE_THROW();
	}
	PG_END_TRY();
	if (PQntuples(result) != 1 || PQnfields(result) != 1)
		ereport(ERROR,
				(errcode(ERRCODE_DATATYPE_MISMATCH),
				 errmsg("function %s(jsonb) of participant \"%s\" must return one value",
						function, server)));
	type = PQftype(result, 0);
	if (type != JSONBOID && type != VOIDOID)
		ereport(ERROR,
				(errcode(ERRCODE_DATATYPE_MISMATCH),
				 errmsg("function %s(jsonb) of participant \"%s\" does not return jsonb or void",
						function, server)));
	if (type == VOIDOID || PQgetisnull(result, 0, 0))
		return NULL;
	return DatumGetJsonbP(DirectFunctionCall1(jsonb_in,
											  CStringGetDatum(PQgetvalue(result, 0, 0))));
}

/* 42704, 42809 or 42501 for a server that cannot be a step's. */
void
twophase_check_server(const char *name)
{
	ForeignServer *server;

	(void) remote_participant(name, &server);
}

/* Has the open transaction participants? */
bool
twophase_in_use(void)
{
	return nbranches > 0;
}
