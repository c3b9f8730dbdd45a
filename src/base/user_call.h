/*-------------------------------------------------------------------------
 *
 * user_call.h
 *	  What is around a call of user code; see user_call.c.
 *
 *-------------------------------------------------------------------------
 */
#ifndef COORD_USER_CALL_H
#define COORD_USER_CALL_H

#include "postgres.h"

#include "datatype/timestamp.h"

/* What the session had before the call. */
typedef struct UserCallSession
{
	bool		watch;			/* a session, and code of another role */
	int64		temp_objects;
	int64		advisory_locks;
} UserCallSession;

extern TimestampTz user_call_arm(TimestampTz ours, bool *armed);
extern void user_call_disarm(TimestampTz theirs);
extern bool user_call_is_cancel(const ErrorData *error);

extern bool user_call_watch(Oid owner, Oid caller, UserCallSession *state);
extern void user_call_check(const UserCallSession *state);
extern void user_call_release(const UserCallSession *state);
extern bool user_call_is_restriction(const UserCallSession *state, const ErrorData *error);

#endif							/* COORD_USER_CALL_H */
