/*-------------------------------------------------------------------------
 *
 * twophase_run.c
 *	  A transaction whose branches are all known: one round trip for the votes,
 *	  one for the rest.
 *
 * BEGIN, the statement and PREPARE TRANSACTION go to each participant as one
 * pipeline; while they are under way the local branches run.  The decision is the
 * local commit, as always (commit.c).  Phase two is outside of any callback, so it can
 * be interrupted, and left to the resolver when the caller only wants to know what
 * was decided.
 *
 * PREPARE is sent before it is known how many rows a statement touched: a branch
 * that expected another number is rolled back as prepared.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/xact.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "parser/analyze.h"
#include "parser/parser.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/jsonb.h"
#include "utils/lsyscache.h"
#include "utils/snapmgr.h"

#include "base/check.h"
#include "base/errors.h"
#include "base/guc.h"
#include "base/json.h"
#include "twophase/branch.h"
#include "twophase/commit.h"
#include "twophase/remote_args.h"

PG_FUNCTION_INFO_V1(coord_branch);
PG_FUNCTION_INFO_V1(coord_twophase_run);
PG_FUNCTION_INFO_V1(coord_twophase_run_json);

/* One of the branches that were given. */
typedef struct Order
{
	char	   *server;			/* NULL: this database */
	char	   *sql;
	const char **values;
	int			nvalues;
	int64		expected;		/* rows; -1: any number */
	int64		rows;
	Branch	   *branch;
	int			command;		/* of the batch */
} Order;

/* coord.branch(server, sql, args, expect_rows) */
Datum
coord_branch(PG_FUNCTION_ARGS)
{
	JsonWriter	writer = {0};

	json_begin_object(&writer);
	if (!PG_ARGISNULL(0))
	{
		json_key(&writer, "server");
		json_string(&writer, NameStr(*PG_GETARG_NAME(0)));
	}
	json_key(&writer, "sql");
	json_string(&writer, check_text(fcinfo, 1, "sql"));
	if (!PG_ARGISNULL(2))
	{
		int			count;

		(void) remote_args(PG_GETARG_JSONB_P(2), &count);
		json_key(&writer, "args");
		json_value(&writer, PG_GETARG_JSONB_P(2));
	}
	if (!PG_ARGISNULL(3))
	{
		if (PG_GETARG_INT64(3) < 0)
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("expect_rows must not be negative")));
		json_key(&writer, "expect_rows");
		json_integer(&writer, PG_GETARG_INT64(3));
	}
	json_end_object(&writer);
	PG_RETURN_JSONB_P(json_finish(&writer));
}

/* A branch as coord.branch() makes it; 22023 when it is none. */
static void
read_order(Order *order, Jsonb *json, int number)
{
	static const char *const members[] = {"server", "sql", "args", "expect_rows"};
	JsonbValue	value;
	JsonbIterator *iterator;
	JsonbIteratorToken token;

	if (!json_is_object(json))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("branch %d is not an object", number),
				 errhint("Make it with coord.branch().")));
	iterator = JsonbIteratorInit(&json->root);
	while ((token = JsonbIteratorNext(&iterator, &value, true)) != WJB_DONE)
	{
		bool		known = token != WJB_KEY;

		for (int i = 0; i < lengthof(members) && !known; i++)
			known = value.val.string.len == strlen(members[i]) &&
				strncmp(value.val.string.val, members[i], value.val.string.len) == 0;
		if (!known)
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("branch %d has an unknown member \"%.*s\"", number,
							value.val.string.len, value.val.string.val)));
	}
	order->server = json_get_text(json, "server");
	order->sql = json_get_text(json, "sql");
	if (order->sql == NULL || *order->sql == '\0')
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("branch %d has no sql", number)));
	if (order->server != NULL && strlen(order->server) >= NAMEDATALEN)
		ereport(ERROR,
				(errcode(ERRCODE_NAME_TOO_LONG),
				 errmsg("server name of branch %d is too long", number)));
	if (json_get(json, "args", &value) != NULL && value.type != jbvNull)
		order->values = remote_args(JsonbValueToJsonb(&value), &order->nvalues);
	order->expected = -1;
	if (json_get(json, "expect_rows", &value) != NULL && value.type != jbvNull)
	{
		if (value.type != jbvNumeric)
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("expect_rows of branch %d must be a number", number)));
		order->expected = DatumGetInt64(DirectFunctionCall1(numeric_int8,
															NumericGetDatum(value.val.numeric)));
	}
}

/* The types that a statement's parameters have where they are used. */
static Oid *
parameter_types(const Order *order)
{
	List	   *statements = raw_parser(order->sql, RAW_PARSE_DEFAULT);
	Oid		   *types = palloc0(sizeof(Oid) * Max(order->nvalues, 1));
	int			count = order->nvalues;

	if (list_length(statements) != 1)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("the branch of this database must be one statement"),
				 errdetail("There are %d.", list_length(statements))));
	(void) parse_analyze_varparams(linitial(statements), order->sql, &types, &count, NULL);
	if (count > order->nvalues)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_PARAMETER),
				 errmsg("there is no argument for $%d", count)));
	for (int i = 0; i < order->nvalues; i++)
	{
		if (types[i] == InvalidOid || types[i] == UNKNOWNOID)
			types[i] = TEXTOID;
	}
	return types;
}

/* A branch in this database, as the caller. */
static void
run_here(Order *order)
{
	Oid		   *types;
	Datum	   *values = palloc(sizeof(Datum) * Max(order->nvalues, 1));
	char	   *nulls = palloc(Max(order->nvalues, 1));
	SPIPlanPtr	plan;
	int			result;

	if (SPI_connect() != SPI_OK_CONNECT)
		elog(ERROR, "SPI_connect failed");
	PushActiveSnapshot(GetTransactionSnapshot());
	types = parameter_types(order);
	plan = SPI_prepare(order->sql, order->nvalues, types);
	if (plan == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("the branch of this database cannot be run: %s",
						SPI_result_code_string(SPI_result))));
	for (int i = 0; i < order->nvalues; i++)
	{
		Oid			input;
		Oid			parameter;

		nulls[i] = order->values[i] == NULL ? 'n' : ' ';
		getTypeInputInfo(types[i], &input, &parameter);
		values[i] = order->values[i] == NULL ? (Datum) 0 :
			OidInputFunctionCall(input, unconstify(char *, order->values[i]), parameter, -1);
	}
	result = SPI_execute_plan(plan, values, nulls, false, 0);
	if (result < 0)
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("the branch of this database cannot be run: %s",
						SPI_result_code_string(result)),
				 errdetail("The transaction ends together with its other branches.")));
	order->rows = SPI_processed;
	PopActiveSnapshot();
	SPI_finish();
}

/* One row too many or too few undoes all. */
static void
check_rows(const Order *order, int number)
{
	if (order->expected >= 0 && order->rows != order->expected)
		ereport(ERROR,
				(errcode(ERRCODE_COORD_PARTICIPANT_FAILED),
				 errmsg("branch %d touched " INT64_FORMAT " rows instead of " INT64_FORMAT,
						number, order->rows, order->expected),
				 errdetail("Nothing was committed.")));
}

/*
 * The statements of all participants, each with what they are to be prepared by.
 * Two branches of one participant are one transaction there.
 */
static void
send_orders(Order *orders, int count, int64 until)
{
	for (int i = 0; i < count; i++)
	{
		if (orders[i].server == NULL)
			continue;
		orders[i].branch = branch_enlist(orders[i].server, until);
		branch_check_statement(orders[i].sql);
		orders[i].branch->wrote = true;
	}
	twophase_begin_commit();
	for (int i = 0; i < count; i++)
	{
		Branch	   *branch = orders[i].branch;

		if (branch == NULL)
			continue;
		if (branch->level == 0)
		{
			remote_batch(branch->remote);
			branch_send_begin(branch);
		}
		if (!remote_add(branch->remote, orders[i].sql, orders[i].nvalues, orders[i].values, true) &&
			branch->remote->state == REMOTE_IDLE)
			ereport(ERROR,
					(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
					 errmsg("too many branches of participant \"%s\"", orders[i].server),
					 errhint("Make them one statement, or use coord.remote_exec().")));
		orders[i].command = branch->remote->ncommands - 1;
	}
	twophase_send_prepares();
}

/* What the participants' statements did, their votes being in. */
static void
read_rows(Order *orders, int count)
{
	for (int i = 0; i < count; i++)
	{
		char	   *rows;

		if (orders[i].branch == NULL)
			continue;
		rows = PQcmdTuples(orders[i].branch->remote->results[orders[i].command]);
		orders[i].rows = strtoi64(*rows ? rows : "0", NULL, 10);
	}
}

static Datum
run(FunctionCallInfo fcinfo, Datum *branches_json, bool *missing, int count)
{
	Order	   *orders;
	char	   *return_at = PG_ARGISNULL(1) ? "applied" : text_to_cstring(PG_GETARG_TEXT_PP(1));
	bool		applied = strcmp(return_at, "applied") == 0;
	int64		gtid;
	TupleDesc	desc;
	Datum		values[3];
	bool		nulls[3] = {false};
	Datum	   *rows;
	MemoryContext context = CurrentMemoryContext;

	if (!applied && strcmp(return_at, "decided") != 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("unknown return_at \"%s\"", return_at),
				 errhint("It is applied or decided.")));
	if (count == 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("there must be at least one branch")));
	orders = palloc0(sizeof(Order) * count);
	for (int i = 0; i < count; i++)
	{
		if (missing != NULL && missing[i])
			ereport(ERROR,
					(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
					 errmsg("branch %d must not be null", i + 1)));
		read_order(&orders[i], DatumGetJsonbP(branches_json[i]), i + 1);
	}
	if (nbranches > 0)
		ereport(ERROR,
				(errcode(ERRCODE_ACTIVE_SQL_TRANSACTION),
				 errmsg("this transaction has participants already"),
				 errhint("COMMIT before CALL coord.twophase_run.")));
	branch_be_ready();
	gtid = twophase_take_gtid();
	send_orders(orders, count, PG_INT64_MAX / 2);
	for (int i = 0; i < count; i++)
	{
		if (orders[i].server != NULL)
			continue;
		run_here(&orders[i]);
		check_rows(&orders[i], i + 1);
	}
	twophase_gather_votes();
	read_rows(orders, count);
	for (int i = 0; i < count; i++)
		check_rows(&orders[i], i + 1);
	twophase_decide();
	if (SPI_connect_ext(SPI_OPT_NONATOMIC) != SPI_OK_CONNECT)
		elog(ERROR, "SPI_connect failed");
	SPI_commit();
	SPI_finish();
	MemoryContextSwitchTo(context);
	twophase_phase_two(gtid, applied);

	rows = palloc(sizeof(Datum) * count);
	for (int i = 0; i < count; i++)
		rows[i] = Int64GetDatum(orders[i].rows);
	if (get_call_result_type(fcinfo, NULL, &desc) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "procedure must return a row");
	values[0] = Int64GetDatum(gtid);
	values[1] = CStringGetTextDatum("committed");
	values[2] = PointerGetDatum(construct_array(rows, count, INT8OID, 8, true, TYPALIGN_DOUBLE));
	return HeapTupleGetDatum(heap_form_tuple(BlessTupleDesc(desc), values, nulls));
}

/* CALL coord.twophase_run(branches, return_at, gtid, outcome, row_counts) */
Datum
coord_twophase_run(PG_FUNCTION_ARGS)
{
	Datum	   *elements;
	bool	   *nulls;
	int			count;

	check_nonatomic(fcinfo, "coord.twophase_run");
	check_required(fcinfo, 0, "branches");
	deconstruct_array(PG_GETARG_ARRAYTYPE_P_COPY(0), JSONBOID, -1, false, TYPALIGN_INT,
					  &elements, &nulls, &count);
	return run(fcinfo, elements, nulls, count);
}

/* CALL coord.twophase_run_json(branches, return_at, gtid, outcome, row_counts) */
Datum
coord_twophase_run_json(PG_FUNCTION_ARGS)
{
	Jsonb	   *array;
	JsonbIterator *iterator;
	JsonbIteratorToken token;
	JsonbValue	value;
	Datum	   *elements;
	int			count = 0;

	check_nonatomic(fcinfo, "coord.twophase_run_json");
	check_required(fcinfo, 0, "branches");
	array = PG_GETARG_JSONB_P_COPY(0);
	if (!JB_ROOT_IS_ARRAY(array) || JB_ROOT_IS_SCALAR(array))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("branches must be a JSON array")));
	elements = palloc(sizeof(Datum) * Max(JB_ROOT_COUNT(array), 1));
	iterator = JsonbIteratorInit(&array->root);
	while ((token = JsonbIteratorNext(&iterator, &value, true)) != WJB_DONE)
	{
		if (token == WJB_ELEM)
			elements[count++] = JsonbPGetDatum(JsonbValueToJsonb(&value));
	}
	return run(fcinfo, elements, NULL, count);
}
