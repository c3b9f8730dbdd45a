/*-------------------------------------------------------------------------
 *
 * retry.c
 *	  Which errors are worth another attempt, and when.
 *
 * Exponential backoff with full jitter: the delay is uniform between zero and
 * the exponential bound.  Source: Marc Brooker, "Exponential Backoff And
 * Jitter", AWS Architecture Blog, 2015.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <math.h>

#include "common/pg_prng.h"

#include "base/retry.h"

/* What passes by itself: connections, resources, intervention, locks, I/O. */
static const char *const default_retry_on[] = {
	"08", "40", "53", "57", "55P03", "58030", "ZC010"
};

static bool
matches(const char *pattern, const char *sqlstate)
{
	return strcmp(pattern, "*") == 0 ||
		strncmp(pattern, sqlstate, strlen(pattern)) == 0;
}

bool
retry_is_worth(const RetryPolicy *policy, const char *sqlstate)
{
	for (int i = 0; i < policy->nretry_on; i++)
	{
		if (matches(policy->retry_on[i], sqlstate))
			return true;
	}
	if (policy->nretry_on > 0)
		return false;
	for (int i = 0; i < lengthof(default_retry_on); i++)
	{
		if (matches(default_retry_on[i], sqlstate))
			return true;
	}
	return false;
}

/* Is "code" an SQLSTATE, a class of them, or "*"? */
bool
retry_code_is_valid(const char *code)
{
	size_t		length = strlen(code);

	if (strcmp(code, "*") == 0)
		return true;
	return (length == 2 || length == 5) &&
		strspn(code, "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ") == length;
}

/* Microseconds to wait after attempt number "attempt" (from 1) failed. */
int64
retry_delay(const RetryPolicy *policy, int attempt)
{
	double		bound = policy->delay * pow(policy->backoff, attempt - 1);

	if (!(bound < policy->max_delay))
		bound = policy->max_delay;
	return (int64) (bound * pg_prng_double(&pg_global_prng_state));
}
