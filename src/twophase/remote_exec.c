/*-------------------------------------------------------------------------
 *
 * remote_exec.c
 *	  SQL at participants, inside an ordinary transaction.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/transam.h"
#include "catalog/pg_type.h"
#include "fmgr.h"
#include "funcapi.h"
#include "utils/builtins.h"
#include "utils/tuplestore.h"
#include "utils/json.h"
#include "utils/lsyscache.h"
#include "utils/timestamp.h"
#include "utils/typcache.h"

#include "base/check.h"
#include "base/clock.h"
#include "base/guc.h"
#include "base/json.h"
#include "twophase/branch.h"
#include "twophase/remote_args.h"

/* Values of one statement, as libpq takes them. */
#define MAX_VALUES 1000

PG_FUNCTION_INFO_V1(coord_remote_exec);
PG_FUNCTION_INFO_V1(coord_remote_query);
PG_FUNCTION_INFO_V1(coord_twophase_current);

/*
 * The arguments of a statement: strings as they are, numbers and booleans as text,
 * null as NULL, arrays and objects as JSON text.  In the current memory context.
 */
const char **
remote_args(Jsonb *args, int *count)
{
	const char **values;
	JsonbIterator *iterator;
	JsonbIteratorToken token;
	JsonbValue	value;
	int			n = 0;

	if (args == NULL)
	{
		*count = 0;
		return NULL;
	}
	if (!JB_ROOT_IS_ARRAY(args) || JB_ROOT_IS_SCALAR(args))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("args must be a JSON array"),
				 errdetail("Its elements are the values of $1, $2 and so on.")));
	if (JB_ROOT_COUNT(args) > MAX_VALUES)
		ereport(ERROR,
				(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
				 errmsg("too many arguments"),
				 errdetail("There are %d, %d are allowed.", (int) JB_ROOT_COUNT(args), MAX_VALUES)));
	values = palloc0(sizeof(char *) * Max(JB_ROOT_COUNT(args), 1));
	iterator = JsonbIteratorInit(&args->root);
	while ((token = JsonbIteratorNext(&iterator, &value, true)) != WJB_DONE)
	{
		if (token != WJB_ELEM)
			continue;
		switch (value.type)
		{
			case jbvNull:
				values[n++] = NULL;
				break;
			case jbvString:
				values[n++] = pnstrdup(value.val.string.val, value.val.string.len);
				break;
			case jbvNumeric:
				values[n++] = DatumGetCString(DirectFunctionCall1(numeric_out,
																  NumericGetDatum(value.val.numeric)));
				break;
			case jbvBool:
				values[n++] = value.val.boolean ? "true" : "false";
				break;
			default:
				values[n++] = JsonbToCString(NULL, value.val.binary.data, value.val.binary.len);
		}
	}
	*count = n;
	return values;
}

/* Arguments server, sql, args, timeout; runs the statement. */
static PGresult *
execute(FunctionCallInfo fcinfo, bool keep)
{
	char	   *server;
	char	   *sql;
	const char **values;
	int			nvalues;
	int64		until = PG_INT64_MAX / 2;

	check_required(fcinfo, 0, "server");
	server = NameStr(*PG_GETARG_NAME(0));
	sql = check_text(fcinfo, 1, "sql");
	values = remote_args(PG_ARGISNULL(2) ? NULL : PG_GETARG_JSONB_P(2), &nvalues);
	if (!PG_ARGISNULL(3))
	{
		int64		us = clock_interval_us(PG_GETARG_INTERVAL_P(3));

		if (us <= 0)
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("timeout must be greater than 0")));
		until = remote_now() + us;
	}
	return branch_execute(branch_enlist(server, until), sql, nvalues, values, until, keep,
						  false);
}

/* coord.remote_exec(server, sql, args, timeout): rows affected. */
Datum
coord_remote_exec(PG_FUNCTION_ARGS)
{
	PGresult   *result = execute(fcinfo, true);
	char	   *rows = PQcmdTuples(result);

	PG_RETURN_INT64(strtoi64(*rows ? rows : "0", NULL, 10));
}

/* Is it a type whose values are the names of objects, which are other ones here? */
static bool
is_of_names(Oid type)
{
	Oid			element = get_element_type(type);

	switch (OidIsValid(element) ? element : type)
	{
		case REGPROCOID:
		case REGPROCEDUREOID:
		case REGOPEROID:
		case REGOPERATOROID:
		case REGCLASSOID:
		case REGCOLLATIONOID:
		case REGTYPEOID:
		case REGROLEOID:
		case REGNAMESPACEOID:
		case REGCONFIGOID:
		case REGDICTIONARYOID:
		case ACLITEMOID:
			return true;
		default:
			return false;
	}
}

/*
 * A type of our own catalog for a column, when the participant's means the same;
 * else text.
 */
static Oid
local_type(Oid type)
{
	if (type >= FirstGenbkiObjectId || !get_typisdefined(type) ||
		get_typtype(type) == TYPTYPE_PSEUDO || is_of_names(type))
		return TEXTOID;
	return type;
}

/* coord.remote_query(server, sql, args, timeout): each row as an object. */
Datum
coord_remote_query(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	PGresult   *result = execute(fcinfo, false);
	int			columns = PQnfields(result);
	TupleDesc	desc = CreateTemplateTupleDesc(columns);
	char	  **values = palloc(sizeof(char *) * Max(columns, 1));
	AttInMetadata *input;
	MemoryContext context;

	InitMaterializedSRF(fcinfo, MAT_SRF_USE_EXPECTED_DESC);
	for (int i = 0; i < columns; i++)
		TupleDescInitEntry(desc, i + 1, PQfname(result, i), local_type(PQftype(result, i)), -1, 0);
	input = TupleDescGetAttInMetadata(BlessTupleDesc(desc));
	context = AllocSetContextCreate(CurrentMemoryContext, "coord remote row",
									ALLOCSET_DEFAULT_SIZES);
	for (int row = 0; row < PQntuples(result); row++)
	{
		MemoryContext old = MemoryContextSwitchTo(context);
		Datum		json;
		Datum		value;
		bool		isnull = false;

		for (int i = 0; i < columns; i++)
			values[i] = PQgetisnull(result, row, i) ? NULL : PQgetvalue(result, row, i);
		json = DirectFunctionCall1(row_to_json,
								   HeapTupleGetDatum(BuildTupleFromCStrings(input, values)));
		value = DirectFunctionCall1(jsonb_in, CStringGetDatum(TextDatumGetCString(json)));
		tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, &value, &isnull);
		MemoryContextSwitchTo(old);
		MemoryContextReset(context);
	}
	return (Datum) 0;
}

/* coord.twophase_current(): the open transaction's id; its decision is recorded. */
Datum
coord_twophase_current(PG_FUNCTION_ARGS)
{
	check_not_in_recovery("coord.twophase_current()");
	branch_be_ready();
	PG_RETURN_INT64(twophase_take_gtid());
}
