/*-------------------------------------------------------------------------
 *
 * check.c
 *	  Arguments of public functions: required ones, names, near misses.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xlog.h"
#include "lib/stringinfo.h"
#include "nodes/parsenodes.h"
#include "utils/builtins.h"
#include "utils/varlena.h"

#include "base/check.h"

PG_FUNCTION_INFO_V1(coord_internal_raise);

/* 22004 when a required argument is NULL. */
void
check_required(FunctionCallInfo fcinfo, int argument, const char *name)
{
	if (PG_ARGISNULL(argument))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("%s must not be null", name)));
}

/* A required text argument. */
char *
check_text(FunctionCallInfo fcinfo, int argument, const char *name)
{
	check_required(fcinfo, argument, name);
	return text_to_cstring(PG_GETARG_TEXT_PP(argument));
}

/* A text argument, NULL for NULL. */
char *
check_optional_text(FunctionCallInfo fcinfo, int argument)
{
	return PG_ARGISNULL(argument) ? NULL :
		text_to_cstring(PG_GETARG_TEXT_PP(argument));
}

/* Names are 1 to 200 bytes. */
void
check_name(const char *what, const char *name)
{
	size_t		length = strlen(name);

	if (length == 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("%s must not be empty", what)));
	if (length > CHECK_NAME_MAX)
		ereport(ERROR,
				(errcode(ERRCODE_NAME_TOO_LONG),
				 errmsg("%s is too long", what),
				 errdetail("It has %zu bytes, %d are allowed.",
						   length, CHECK_NAME_MAX)));
}

/* 25001 when a procedure that commits is called in a transaction block. */
void
check_nonatomic(FunctionCallInfo fcinfo, const char *procedure)
{
	if (fcinfo->context && IsA(fcinfo->context, CallContext) &&
		!castNode(CallContext, fcinfo->context)->atomic)
		return;
	ereport(ERROR,
			(errcode(ERRCODE_ACTIVE_SQL_TRANSACTION),
			 errmsg("CALL %s cannot run inside a transaction block", procedure),
			 errhint("It commits as it goes: call it by itself, outside BEGIN and functions, with the driver in autocommit mode.")));
}

/*
 * A hint that lists the candidates that look like "name", NULL when none does.
 */
char *
check_near_names(const char *name, List *candidates)
{
	StringInfoData hint;
	ListCell   *cell;
	int			found = 0;
	int			length = strlen(name);

	initStringInfo(&hint);
	foreach(cell, candidates)
	{
		char	   *candidate = lfirst(cell);
		int			limit = Max(2, length / 3);

		if (length > 255 || found >= 5)
			break;
		if (varstr_levenshtein_less_equal(name, length, candidate,
										  strlen(candidate), 1, 1, 1,
										  limit, true) > limit)
			continue;
		appendStringInfo(&hint, "%s\"%s\"",
						 found++ ? ", " : "Perhaps you mean ", candidate);
	}
	if (found == 0)
		return NULL;
	appendStringInfoChar(&hint, '.');
	return hint.data;
}

/* An error raised by a function in SQL: SQLSTATE, message, hint. */
Datum
coord_internal_raise(PG_FUNCTION_ARGS)
{
	char	   *code = check_text(fcinfo, 0, "code");
	char	   *message = check_text(fcinfo, 1, "message");
	char	   *hint = check_optional_text(fcinfo, 2);

	ereport(ERROR,
			(errcode(MAKE_SQLSTATE(code[0], code[1], code[2], code[3], code[4])),
			 errmsg("%s", message),
			 hint ? errhint("%s", hint) : 0));
	PG_RETURN_NULL();
}

/* 25006 on a standby. */
void
check_not_in_recovery(const char *what)
{
	if (RecoveryInProgress())
		ereport(ERROR,
				(errcode(ERRCODE_READ_ONLY_SQL_TRANSACTION),
				 errmsg("%s cannot be executed during recovery", what),
				 errdetail("This server is a standby."),
				 errhint("Nothing runs on a standby: ask the primary.")));
}
