/*-------------------------------------------------------------------------
 *
 * lock_acquire.c
 *	  coord.lock(), coord.try_lock(), coord.lock_many() and coord.unlock().
 *
 * The lock manager does the work: order of arrival, deadlock detection, release
 * with the transaction or the session.  What is added is a name, a timeout of
 * the call's own, and a token.  An exclusive grant takes the next token while it
 * holds the lock; any other mode is told the highest so far, which is no lower
 * than the last exclusive holder's and lower than the next one's.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "storage/proc.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"

#include "base/check.h"
#include "base/clock.h"
#include "base/compat.h"
#include "base/installation.h"
#include "lock/lock.h"
#include "lock/lock_held.h"
#include "lock/lock_shared.h"

PG_FUNCTION_INFO_V1(coord_lock);
PG_FUNCTION_INFO_V1(coord_try_lock);
PG_FUNCTION_INFO_V1(coord_lock_many);
PG_FUNCTION_INFO_V1(coord_unlock);

/* A lock that is wanted. */
typedef struct Wanted
{
	char	   *name;
	LockKey		key;
	LOCKTAG		tag;
	int			place;			/* in the caller's array */
	int64		token;
} Wanted;

/* How all locks of one call are wanted. */
typedef struct Terms
{
	LockKind	kind;
	bool		session;
	bool		try;			/* do not wait at all */
	TimestampTz until;			/* DT_NOEND: for ever */
} Terms;

static void
not_granted(const char *name, int64 waited_us)
{
	ereport(ERROR,
			(errcode(ERRCODE_LOCK_NOT_AVAILABLE),
			 errmsg("lock \"%s\" was not granted in time", name),
			 errdetail("Others have held it for the " INT64_FORMAT " ms that were waited.",
					   waited_us / 1000),
			 errhint("coord.locks and coord.lock_waiters show who holds it and who waits.")));
}

/*
 * Wait for a lock.  The timeout is the server's own lock_timeout, set for this
 * wait; an earlier one of the user's stays.  An error may come after the grant,
 * and then what the session got is given back.
 */
static void
wait_for(const Wanted *wanted, const Terms *terms, LOCKMODE mode)
{
	MemoryContext context = CurrentMemoryContext;
	int			users_timeout = LockTimeout;
	TimestampTz begin = GetCurrentTimestamp();
	bool		held_before = held_by_me(&wanted->tag, mode);
	volatile bool ours = false;

	held_waits(wanted->name, &wanted->key, terms->kind);
	PG_TRY();
	{
		if (terms->until != DT_NOEND)
		{
			int64		ms = Max(1, (terms->until - begin + 999) / 1000);

			ours = users_timeout <= 0 || ms <= users_timeout;
			if (ours)
				LockTimeout = (int) Min(ms, INT_MAX);
		}
		(void) LockAcquire(&wanted->tag, mode, terms->session, false);
		LockTimeout = users_timeout;
	}
	PG_CATCH();
	{
		ErrorData  *error;

		LockTimeout = users_timeout;
		held_waits_no_more();
		if (terms->session && !held_before && held_by_me(&wanted->tag, mode))
			LockRelease(&wanted->tag, mode, true);
		MemoryContextSwitchTo(context);
		error = CopyErrorData();
		if (!ours || error->sqlerrcode != ERRCODE_LOCK_NOT_AVAILABLE)
			PG_RE_THROW();
		FlushErrorState();
		not_granted(wanted->name, GetCurrentTimestamp() - begin);
	}
	PG_END_TRY();
	held_waits_no_more();
}

/*
 * Take a lock; false: not granted, and only if "try".  Everything that can fail
 * is done before the lock is there.
 */
static bool
take(Wanted *wanted, const Terms *terms)
{
	LOCKMODE	mode = lock_kind_modes[terms->kind];
	Held	   *held;
	int64		token;

	if (terms->session)
		held_mark_session();
	else
		held_check_session();
	held = held_find(&wanted->key, terms->kind);
	if (held != NULL)
	{
		/* Once more: the same grant, which is never waited for. */
		if (LockAcquire(&wanted->tag, mode, terms->session, true) == LOCKACQUIRE_NOT_AVAIL)
			elog(ERROR, "lock \"%s\" was not held", wanted->name);
		held_granted(held, wanted->name, &wanted->key, terms->session, held->token);
		wanted->token = held->token;
		return true;
	}

	(void) lock_token_current();	/* or its error before the lock */
	held = held_reserve(wanted->name, &wanted->key, terms->kind);
	PG_TRY();
	{
		bool		granted = LockAcquire(&wanted->tag, mode, terms->session, true) !=
			LOCKACQUIRE_NOT_AVAIL;

		if (!granted && !terms->try)
		{
			if (terms->until != DT_NOEND && terms->until <= GetCurrentTimestamp())
				not_granted(wanted->name, 0);
			wait_for(wanted, terms, mode);
			granted = true;
		}
		if (!granted)
		{
			held_forget(held);
			held = NULL;
		}
		else
		{
			token = terms->kind == KIND_EXCLUSIVE ? lock_token_next() : lock_token_current();
			held_granted(held, wanted->name, &wanted->key, terms->session, token);
			wanted->token = token;
		}
	}
	PG_CATCH();
	{
		/* After the grant only a token that had to be reserved can fail. */
		if (terms->session && held->session == 0 && held_by_me(&wanted->tag, mode))
			LockRelease(&wanted->tag, mode, true);
		if (held->session == 0 && !held->transaction)
			held_forget(held);
		PG_RE_THROW();
	}
	PG_END_TRY();
	return held != NULL;
}

static void
check_callable(const char *function)
{
	installation_check();
	check_not_in_recovery(function);
}

static void
set_wanted(Wanted *wanted, char *name)
{
	wanted->name = name;
	wanted->key = lock_key(name);
	lock_tag(&wanted->tag, &wanted->key, SPACE_LOCK);
}

/* When a timeout ends; NULL: never.  22023 when it is negative. */
static TimestampTz
timeout_end(FunctionCallInfo fcinfo, int argument)
{
	int64		us;

	if (PG_ARGISNULL(argument))
		return DT_NOEND;
	us = clock_interval_us(PG_GETARG_INTERVAL_P(argument));
	if (us < 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("timeout must not be negative"),
				 errdetail("It is how long to wait at most."),
				 errhint("NULL waits for ever, 0 not at all.")));
	if (!coord_interval_is_finite(PG_GETARG_INTERVAL_P(argument)))
		return DT_NOEND;
	return GetCurrentTimestamp() + us;
}

/* coord.lock(name, mode, scope, timeout): the token. */
Datum
coord_lock(PG_FUNCTION_ARGS)
{
	Terms		terms = {0};
	Wanted		wanted;

	check_callable("coord.lock()");
	set_wanted(&wanted, lock_name(fcinfo, 0));
	terms.kind = lock_kind(fcinfo, 1);
	terms.session = lock_session_scope(fcinfo, 2);
	terms.until = timeout_end(fcinfo, 3);
	(void) take(&wanted, &terms);
	PG_RETURN_INT64(wanted.token);
}

/* coord.try_lock(name, mode, scope): the token, NULL: not granted. */
Datum
coord_try_lock(PG_FUNCTION_ARGS)
{
	Terms		terms = {0};
	Wanted		wanted;

	check_callable("coord.try_lock()");
	set_wanted(&wanted, lock_name(fcinfo, 0));
	terms.kind = lock_kind(fcinfo, 1);
	terms.session = lock_session_scope(fcinfo, 2);
	terms.try = true;
	if (!take(&wanted, &terms))
		PG_RETURN_NULL();
	PG_RETURN_INT64(wanted.token);
}

/*
 * Give back one hold of the session; false: it has none.
 */
static bool
release(const LockKey *key, LockKind kind)
{
	Held	   *held;
	LOCKTAG		tag;

	held_check_session();
	held = held_find(key, kind);
	if (held == NULL || held->session == 0)
		return false;
	lock_tag(&tag, key, SPACE_LOCK);
	(void) LockRelease(&tag, lock_kind_modes[kind], true);
	held_released(held);
	return true;
}

/* coord.unlock(name, mode) */
Datum
coord_unlock(PG_FUNCTION_ARGS)
{
	char	   *name;
	LockKey		key;

	check_callable("coord.unlock()");
	name = check_optional_text(fcinfo, 0);
	lock_check_text("name", name);
	key = lock_key(name);
	PG_RETURN_BOOL(release(&key, lock_kind(fcinfo, 1)));
}

/* ----------------------------------------------------------------
 *		Several at once
 * ----------------------------------------------------------------
 */

/* For qsort: by tag, which is the same order for everybody, then by name. */
static int
compare_wanted(const void *a, const void *b)
{
	const Wanted *x = a;
	const Wanted *y = b;
	int			result = lock_compare_tags(&x->tag, &y->tag);

	return result != 0 ? result : strcmp(x->name, y->name);
}

static Wanted *
wanted_names(FunctionCallInfo fcinfo, int *count)
{
	Datum	   *elements;
	bool	   *nulls;
	Wanted	   *wanted;

	check_required(fcinfo, 0, "names");
	deconstruct_array(PG_GETARG_ARRAYTYPE_P(0), TEXTOID, -1, false, TYPALIGN_INT,
					  &elements, &nulls, count);
	wanted = palloc0(sizeof(Wanted) * Max(*count, 1));
	for (int i = 0; i < *count; i++)
	{
		if (nulls[i])
			ereport(ERROR,
					(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
					 errmsg("names must not contain null"),
					 errdetail("Element %d is null.", i + 1),
					 errhint("Leave out what is not to be locked.")));
		set_wanted(&wanted[i], TextDatumGetCString(elements[i]));
		lock_check_name(wanted[i].name);
		wanted[i].place = i;
	}
	qsort(wanted, *count, sizeof(Wanted), compare_wanted);
	for (int i = 1; i < *count; i++)
	{
		if (strcmp(wanted[i].name, wanted[i - 1].name) == 0)
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("name \"%s\" is given twice", wanted[i].name),
					 errdetail("Each name gets one token."),
					 errhint("Give each name once.")));
	}
	return wanted;
}

/*
 * coord.lock_many(names, mode, scope, timeout): the tokens.  All or none: the
 * transaction's are released by the error's abort, the session's here.
 */
Datum
coord_lock_many(PG_FUNCTION_ARGS)
{
	Terms		terms = {0};
	Wanted	   *wanted;
	Datum	   *tokens;
	int			count;
	volatile int taken = 0;

	check_callable("coord.lock_many()");
	wanted = wanted_names(fcinfo, &count);
	terms.kind = lock_kind(fcinfo, 1);
	terms.session = lock_session_scope(fcinfo, 2);
	terms.until = timeout_end(fcinfo, 3);
	PG_TRY();
	{
		while (taken < count)
		{
			(void) take(&wanted[taken], &terms);
			taken++;
		}
	}
	PG_CATCH();
	{
		for (int i = taken - 1; i >= 0 && terms.session; i--)
			(void) release(&wanted[i].key, terms.kind);
		PG_RE_THROW();
	}
	PG_END_TRY();

	tokens = palloc(sizeof(Datum) * Max(count, 1));
	for (int i = 0; i < count; i++)
		tokens[wanted[i].place] = Int64GetDatum(wanted[i].token);
	PG_RETURN_ARRAYTYPE_P(construct_array(tokens, count, INT8OID, sizeof(int64), true,
										  TYPALIGN_DOUBLE));
}
