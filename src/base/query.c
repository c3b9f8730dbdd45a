/*-------------------------------------------------------------------------
 *
 * query.c
 *	  The one way to coord's tables: SPI with saved plans.
 *
 * coord's statements run in sessions of which coord knows nothing: any role,
 * any search_path, any planner settings.  Between query_begin() and
 * query_end() the session is the owner of the extension, resolves names in
 * pg_catalog only (so that an operator or function somebody put in front of it
 * is never seen), and plans the way a queue must be planned: by index,
 * whatever the statistics of a table that is empty at one moment and long at
 * the next happen to say, and once.
 *
 * No user code can run in between: coord's tables have no rules, no policies,
 * and no triggers but coord's own.  After an error the transaction or subtransaction that is then
 * aborted restores identity, settings and SPI.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/namespace.h"
#include "catalog/pg_type.h"
#include "jit/jit.h"
#include "miscadmin.h"
#include "optimizer/cost.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/datum.h"
#include "utils/guc.h"
#include "utils/plancache.h"
#include "utils/snapmgr.h"

#include "base/query.h"

#define OWN_SEARCH_PATH "pg_catalog, pg_temp"

/*
 * Become the extension's owner, take the safe search_path and connect to SPI.
 * Requires a transaction.  Does not nest.  Results and allocations made until
 * query_end() are in SPI's context and go with it.
 */
void
query_begin(QueryScope *scope)
{
	scope->context = CurrentMemoryContext;
	identity_become_extension_owner(&scope->identity);
	scope->guc_level = 0;

	/* In a worker nobody else provides one. */
	scope->snapshot = !ActiveSnapshotSet();
	if (scope->snapshot)
		PushActiveSnapshot(GetTransactionSnapshot());
	if (namespace_search_path == NULL ||
		strcmp(namespace_search_path, OWN_SEARCH_PATH) != 0)
	{
		scope->guc_level = NewGUCNestLevel();
		(void) set_config_option("search_path", OWN_SEARCH_PATH,
								 PGC_USERSET, PGC_S_SESSION,
								 GUC_ACTION_SAVE, true, 0, false);
	}
	if (SPI_connect() != SPI_OK_CONNECT)
		elog(ERROR, "SPI_connect failed");
}

/*
 * Planner settings while one of coord's statements is planned and run.  They
 * are set as plain variables and put back before anything else can see them,
 * which costs nothing; set_config_option() costs a microsecond each.  JIT is
 * off because a disabled path's cost would trigger it.
 */
static const struct
{
	bool	   *setting;
	bool		value;
}			planner_settings[] =
{
	{&enable_seqscan, false},
	{&enable_bitmapscan, false},
	{&enable_hashjoin, false},
	{&enable_mergejoin, false},
	{&enable_indexscan, true},
	{&enable_indexonlyscan, true},
	{&enable_tidscan, true},
	{&enable_nestloop, true},
	{&enable_sort, true},
	{&jit_enabled, false},
};

static pg_noinline void
take_planner_settings(bool *saved)
{
	for (int i = 0; i < lengthof(planner_settings); i++)
	{
		saved[i] = *planner_settings[i].setting;
		*planner_settings[i].setting = planner_settings[i].value;
	}
}

static pg_noinline void
restore_planner_settings(const bool *saved)
{
	for (int i = 0; i < lengthof(planner_settings); i++)
		*planner_settings[i].setting = saved[i];
}

static int
execute(Statement *statement, Datum *values, const char *nulls, Snapshot snapshot,
		bool read_only, long limit)
{
	bool		saved[lengthof(planner_settings)];
	int			mode = plan_cache_mode;
	volatile int result = 0;

	take_planner_settings(saved);
	PG_TRY();
	{
		plan_cache_mode = PLAN_CACHE_MODE_FORCE_GENERIC_PLAN;

		if (statement->plan == NULL)
		{
			SPIPlanPtr	plan = SPI_prepare(statement->sql, statement->nargs,
										   statement->argtypes);

			if (plan == NULL)
				elog(ERROR, "could not prepare \"%s\": %s", statement->sql,
					 SPI_result_code_string(SPI_result));
			SPI_keepplan(plan);
			statement->plan = plan;
		}
		if (snapshot != InvalidSnapshot)
			result = SPI_execute_snapshot(statement->plan, values, nulls, snapshot,
										  InvalidSnapshot, read_only, false, limit);
		else
			result = SPI_execute_plan(statement->plan, values, nulls, false, limit);
	}
	PG_FINALLY();
	{
		restore_planner_settings(saved);
		plan_cache_mode = mode;
	}
	PG_END_TRY();
	return result;
}

static uint64
run(Statement *statement, Datum *values, const bool *nulls, Snapshot snapshot,
	bool read_only, long limit)
{
	char		spi_nulls[QUERY_MAX_ARGS] = "";
	int			result;

	for (int i = 0; i < statement->nargs; i++)
		spi_nulls[i] = (nulls != NULL && nulls[i]) ? 'n' : ' ';

	result = execute(statement, values, spi_nulls, snapshot, read_only, limit);
	if (result < 0)
		elog(ERROR, "could not execute \"%s\": %s", statement->sql,
			 SPI_result_code_string(result));
	return SPI_processed;
}

/*
 * Run a statement and return the number of rows, which are then in
 * SPI_tuptable.  "nulls" may be NULL when no argument is; "limit" 0 means all.
 * Between query_begin() and query_end() only.
 */
uint64
query_run(Statement *statement, Datum *values, const bool *nulls, long limit)
{
	return run(statement, values, nulls, InvalidSnapshot, false, limit);
}

/*
 * The same for a query that must see what has been committed until now even in
 * a transaction that keeps one snapshot.
 */
uint64
query_run_latest(Statement *statement, Datum *values, const bool *nulls, long limit)
{
	Snapshot	snapshot = RegisterSnapshot(GetLatestSnapshot());
	uint64		result = run(statement, values, nulls, snapshot, true, limit);

	UnregisterSnapshot(snapshot);
	return result;
}

/*
 * The same for a statement that writes: it finds the row as it is now.
 */
uint64
query_write_latest(Statement *statement, Datum *values, const bool *nulls)
{
	Snapshot	snapshot;
	uint64		result;

	if (!IsolationUsesXactSnapshot())
		return query_run(statement, values, nulls, 0);
	snapshot = RegisterSnapshot(GetLatestSnapshot());
	result = run(statement, values, nulls, snapshot, false, 0);
	UnregisterSnapshot(snapshot);
	return result;
}

/* Run a statement that is made up at run time: DDL. */
void
query_utility(const char *sql)
{
	int			result = SPI_execute(sql, false, 0);

	if (result < 0)
		elog(ERROR, "could not execute \"%s\": %s", sql, SPI_result_code_string(result));
}

/* Disconnect from SPI and be again who the caller was. */
void
query_end(QueryScope *scope)
{
	SPI_finish();
	if (scope->snapshot)
		PopActiveSnapshot();
	if (scope->guc_level != 0)
		AtEOXact_GUC(true, scope->guc_level);
	identity_restore(&scope->identity);
	MemoryContextSwitchTo(scope->context);
}

/* A column of the last result; by-reference values are SPI's. */
Datum
query_value(uint64 row, int column, bool *isnull)
{
	return SPI_getbinval(SPI_tuptable->vals[row], SPI_tuptable->tupdesc,
						 column, isnull);
}

/* A column of the last result copied to "context", detoasted. */
Datum
query_copy(MemoryContext context, uint64 row, int column, bool *isnull)
{
	Form_pg_attribute att = TupleDescAttr(SPI_tuptable->tupdesc, column - 1);
	Datum		value = query_value(row, column, isnull);
	MemoryContext old;

	if (*isnull)
		return (Datum) 0;
	old = MemoryContextSwitchTo(context);
	if (att->attlen == -1)
		value = PointerGetDatum(PG_DETOAST_DATUM_COPY(value));
	else
		value = datumCopy(value, att->attbyval, att->attlen);
	MemoryContextSwitchTo(old);
	return value;
}

/* A text column of the last result as a C string in "context", NULL for null. */
char *
query_text(MemoryContext context, uint64 row, int column)
{
	bool		isnull;
	Datum		value = query_value(row, column, &isnull);
	MemoryContext old;
	char	   *result;

	if (isnull)
		return NULL;
	old = MemoryContextSwitchTo(context);
	result = TextDatumGetCString(value);
	MemoryContextSwitchTo(old);
	return result;
}

/* An array argument, in the current memory context. */
Datum
query_int8_array(const int64 *values, int count)
{
	Datum	   *elements = palloc(sizeof(Datum) * Max(count, 1));

	for (int i = 0; i < count; i++)
		elements[i] = Int64GetDatum(values[i]);
	return PointerGetDatum(construct_array(elements, count, INT8OID, 8, true,
										   TYPALIGN_DOUBLE));
}
