/*-------------------------------------------------------------------------
 *
 * retry.h
 *	  Which errors are worth another attempt, and when.
 *
 *-------------------------------------------------------------------------
 */
#ifndef COORD_RETRY_H
#define COORD_RETRY_H

#include "postgres.h"

#include "datatype/timestamp.h"

typedef struct RetryPolicy
{
	int			max_attempts;	/* 0: the default of whoever asks */
	int64		delay;			/* us */
	double		backoff;
	int64		max_delay;		/* us */
	int			nretry_on;		/* 0: the default list */
	char	  **retry_on;		/* codes, two-character classes, "*" */
} RetryPolicy;

extern bool retry_is_worth(const RetryPolicy *policy, const char *sqlstate);
extern bool retry_code_is_valid(const char *code);
extern int64 retry_delay(const RetryPolicy *policy, int attempt);

#endif							/* COORD_RETRY_H */
