/*-------------------------------------------------------------------------
 *
 * query.h
 *	  The one way to coord's tables: SPI with saved plans.
 *
 *-------------------------------------------------------------------------
 */
#ifndef COORD_QUERY_H
#define COORD_QUERY_H

#include "executor/spi.h"
#include "utils/jsonb.h"
#include "utils/timestamp.h"

#include "base/identity.h"

#define QUERY_MAX_ARGS 32

/*
 * A statement of coord's own.  Declare it static; "plan" is filled in on first
 * use and lives as long as the process.
 */
typedef struct Statement
{
	const char *sql;
	int			nargs;
	Oid			argtypes[QUERY_MAX_ARGS];
	SPIPlanPtr	plan;
} Statement;

/* What query_begin() changed and query_end() puts back. */
typedef struct QueryScope
{
	Identity	identity;
	int			guc_level;		/* 0: search_path was already ours */
	bool		snapshot;		/* pushed one */
	MemoryContext context;
} QueryScope;

extern void query_begin(QueryScope *scope);
extern uint64 query_run(Statement *statement, Datum *values, const bool *nulls, long limit);
extern uint64 query_run_latest(Statement *statement, Datum *values, const bool *nulls, long limit);
extern uint64 query_write_latest(Statement *statement, Datum *values, const bool *nulls);
extern void query_utility(const char *sql);
extern void query_end(QueryScope *scope);

extern Datum query_value(uint64 row, int column, bool *isnull);
extern char *query_text(MemoryContext context, uint64 row, int column);
extern Datum query_copy(MemoryContext context, uint64 row, int column, bool *isnull);
extern Datum query_int8_array(const int64 *values, int count);

/* Columns of the last result; a time or a document is 0 for null. */
static inline int64
query_int8(uint64 row, int column)
{
	bool		isnull;

	return DatumGetInt64(query_value(row, column, &isnull));
}

static inline int
query_int4(uint64 row, int column)
{
	bool		isnull;

	return DatumGetInt32(query_value(row, column, &isnull));
}

static inline TimestampTz
query_time(uint64 row, int column)
{
	bool		isnull;
	Datum		value = query_value(row, column, &isnull);

	return isnull ? 0 : DatumGetTimestampTz(value);
}

static inline Jsonb *
query_jsonb(MemoryContext context, uint64 row, int column)
{
	bool		isnull;
	Datum		value = query_copy(context, row, column, &isnull);

	return isnull ? NULL : DatumGetJsonbP(value);
}

#endif							/* COORD_QUERY_H */
