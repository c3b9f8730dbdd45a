/*-------------------------------------------------------------------------
 *
 * guc.c
 *	  coord's settings.  doc/settings.md lists them for users.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <limits.h>

#include "fmgr.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/timestamp.h"
#include "utils/uuid.h"

#include "base/compat.h"
#include "base/guc.h"

char	   *guc_correlation_id = NULL;
bool		guc_enabled = true;
int			guc_event_retention = 7 * 24 * 60;
int			guc_fence_steal_timeout = 0;
int			guc_handler_timeout = 60000;
int			guc_max_function_wait = 5000;
int			guc_max_lease = 60 * 60 * 1000;
int			guc_max_locks = -1;
int			guc_max_workers = 4;
int			guc_saga_retention = 30 * 24 * 60;
int			guc_twophase_lock_timeout = 10000;
int			guc_twophase_phase2_timeout = 5000;
int			guc_twophase_prepare_timeout = 30000;
int			guc_twophase_retention = 7 * 24 * 60;
int			guc_worker_idle_timeout = 10000;
TimestampTz guc_test_now_value = 0;
static char *guc_test_now = NULL;

#ifdef COORD_DEBUG_POINTS
int			guc_debug_hash_bits = 64;
char	   *guc_debug_point = NULL;
#endif

/*
 * A uuid or nothing.  Parsed by hand: check hooks must not raise errors.
 */
static bool
check_correlation_id(char **newval, void **extra, GucSource source)
{
	int			digits = 0;

	for (const char *p = *newval; p != NULL && *p; p++)
	{
		if (isxdigit((unsigned char) *p))
			digits++;
		else if (*p != '-')
			digits = INT_MIN;
	}
	if (*newval == NULL || **newval == '\0' || digits == 32)
		return true;
	GUC_check_errdetail("The value must be a uuid or empty.");
	return false;
}

static bool
check_test_now(char **newval, void **extra, GucSource source)
{
	TimestampTz *value;
	volatile TimestampTz parsed = 0;
	volatile bool ok = true;
	MemoryContext context = CurrentMemoryContext;

	if (*newval != NULL && **newval != '\0')
	{
		/* Superusers only, in tests: catching the input error is enough. */
		PG_TRY();
		{
			parsed = DatumGetTimestampTz(DirectFunctionCall3(timestamptz_in,
															 CStringGetDatum(*newval),
															 ObjectIdGetDatum(InvalidOid),
															 Int32GetDatum(-1)));
		}
		PG_CATCH();
		{
			MemoryContextSwitchTo(context);
			FlushErrorState();
			ok = false;
		}
		PG_END_TRY();
		if (!ok)
		{
			GUC_check_errdetail("The value must be a timestamp with time zone or empty.");
			return false;
		}
	}
	value = coord_guc_malloc(sizeof(TimestampTz));
	if (value == NULL)
		return false;
	*value = parsed;
	*extra = value;
	return true;
}

static void
assign_test_now(const char *newval, void *extra)
{
	guc_test_now_value = extra ? *(TimestampTz *) extra : 0;
}

/* Define all settings, in alphabetical order.  Called from _PG_init. */
void
guc_define(void)
{
	DefineCustomStringVariable("coord.correlation_id",
							   "Correlation id of what this session starts.",
							   "Set by coord inside steps and handlers.",
							   &guc_correlation_id,
							   "",
							   PGC_USERSET, 0,
							   check_correlation_id, NULL, NULL);

#ifdef COORD_DEBUG_POINTS
	DefineCustomIntVariable("coord.debug_hash_bits",
							"How many bits of a name's hash tell locks apart.",
							NULL,
							&guc_debug_hash_bits,
							64, 0, 64,
							PGC_SUSET, GUC_NO_SHOW_ALL,
							NULL, NULL, NULL);

	DefineCustomStringVariable("coord.debug_point",
							   "Fault to raise at a named point of the code.",
							   "action:point, action being wait, error or crash; tests only.",
							   &guc_debug_point,
							   "",
							   PGC_SUSET, GUC_NO_SHOW_ALL,
							   NULL, NULL, NULL);
#endif

	DefineCustomBoolVariable("coord.enabled",
							 "Runs due work; off makes this cluster do nothing.",
							 "Switch off in a physical clone before its first start.",
							 &guc_enabled,
							 true,
							 PGC_SIGHUP, 0,
							 NULL, NULL, NULL);

	DefineCustomIntVariable("coord.event_retention",
							"How long published events are kept.",
							"Events of streams are kept until somebody truncates them.",
							&guc_event_retention,
							7 * 24 * 60, 1, INT_MAX,
							PGC_SIGHUP, GUC_UNIT_MIN,
							NULL, NULL, NULL);

	DefineCustomIntVariable("coord.fence_steal_timeout",
							"A fenced transaction that is idle for this long may be terminated by who is granted the lease next.",
							"0: it is waited for.",
							&guc_fence_steal_timeout,
							0, 0, INT_MAX,
							PGC_SIGHUP, GUC_UNIT_MS,
							NULL, NULL, NULL);

	DefineCustomIntVariable("coord.handler_timeout",
							"How long a handler of events may run.",
							"0: for as long as it likes.",
							&guc_handler_timeout,
							60000, 0, INT_MAX,
							PGC_SIGHUP, GUC_UNIT_MS,
							NULL, NULL, NULL);

	DefineCustomIntVariable("coord.max_function_wait",
							"Longest time that a function waits for work, holding its snapshot.",
							"CALL coord.await() holds none and may wait longer.",
							&guc_max_function_wait,
							5000, 0, INT_MAX,
							PGC_SUSET, GUC_UNIT_MS,
							NULL, NULL, NULL);

	DefineCustomIntVariable("coord.max_lease",
							"Longest time to live of a lease.",
							NULL,
							&guc_max_lease,
							60 * 60 * 1000, 1, INT_MAX,
							PGC_SUSET, GUC_UNIT_MS,
							NULL, NULL, NULL);

	DefineCustomIntVariable("coord.max_locks",
							"Most named locks at a time, in this cluster.",
							"-1: half of what the server's lock table is made for.",
							&guc_max_locks,
							-1, -1, INT_MAX,
							PGC_SIGHUP, 0,
							NULL, NULL, NULL);

	DefineCustomIntVariable("coord.max_workers",
							"Most background workers at a time, over all databases.",
							NULL,
							&guc_max_workers,
							4, 1, 64,
							PGC_SIGHUP, 0,
							NULL, NULL, NULL);

	DefineCustomIntVariable("coord.saga_retention",
							"How long finished sagas and the saga log are kept.",
							NULL,
							&guc_saga_retention,
							30 * 24 * 60, 1, INT_MAX,
							PGC_SIGHUP, GUC_UNIT_MIN,
							NULL, NULL, NULL);

	DefineCustomStringVariable("coord.test_now",
							   "Pins coord's clock; for tests.",
							   "A timestamp with time zone; empty: the system clock.",
							   &guc_test_now,
							   "",
							   PGC_SUSET, GUC_NO_SHOW_ALL,
							   check_test_now, assign_test_now, NULL);

	DefineCustomIntVariable("coord.twophase_lock_timeout",
							"lock_timeout of what runs at participants.",
							"It ends deadlocks that span servers.",
							&guc_twophase_lock_timeout,
							10000, 1, INT_MAX,
							PGC_USERSET, GUC_UNIT_MS,
							NULL, NULL, NULL);

	DefineCustomIntVariable("coord.twophase_phase2_timeout",
							"How long COMMIT waits for participants after the decision.",
							"What is not acknowledged by then is left to the resolver, with a warning.",
							&guc_twophase_phase2_timeout,
							5000, 0, INT_MAX,
							PGC_USERSET, GUC_UNIT_MS,
							NULL, NULL, NULL);

	DefineCustomIntVariable("coord.twophase_prepare_timeout",
							"How long COMMIT waits for the votes of participants.",
							"Who has not voted by then has voted no.",
							&guc_twophase_prepare_timeout,
							30000, 1, INT_MAX,
							PGC_USERSET, GUC_UNIT_MS,
							NULL, NULL, NULL);

	DefineCustomIntVariable("coord.twophase_retention",
							"How long decisions are kept.",
							"A participant that fails over to a standby further behind than this is in doubt.",
							&guc_twophase_retention,
							7 * 24 * 60, 1, INT_MAX,
							PGC_SIGHUP, GUC_UNIT_MIN,
							NULL, NULL, NULL);

	DefineCustomIntVariable("coord.worker_idle_timeout",
							"A worker with nothing to do for this long gives up its connection.",
							NULL,
							&guc_worker_idle_timeout,
							10000, 100, INT_MAX,
							PGC_SIGHUP, GUC_UNIT_MS,
							NULL, NULL, NULL);

	MarkGUCPrefixReserved("coord");
}
