/*-------------------------------------------------------------------------
 *
 * twophase_app.h
 *	  Two-phase commits of applications; see twophase_app.c.
 *
 *-------------------------------------------------------------------------
 */
#ifndef COORD_TWOPHASE_APP_H
#define COORD_TWOPHASE_APP_H

#include "postgres.h"

#include "fmgr.h"
#include "utils/jsonb.h"
#include "utils/timestamp.h"
#include "utils/uuid.h"

/* coord_internal.twophase_app.status */
typedef enum AppStatus
{
	APP_OPEN,
	APP_PREPARING,
	APP_COMMITTED,
	APP_ABORTED
} AppStatus;

typedef enum AppEvent
{
	APP_EVENT_PREPARE,
	APP_EVENT_COMMIT,
	APP_EVENT_REFUSE,
	APP_EVENT_EXPIRE,
	APP_EVENT_ABORT
} AppEvent;

typedef struct App
{
	int64		gtid;
	Oid			owner;
	AppStatus	status;
	TimestampTz deadline;		/* by clock_now() */
	bool		has_correlation;
	pg_uuid_t	correlation_id;
	char	   *reason;			/* why it was aborted, or NULL */
} App;

typedef struct AppParticipant
{
	char	   *name;
	Oid			owner;
	int64		definition;		/* what its saga is made by; 0: it is a server's */
	int64		saga;			/* 0: not begun, or a server's */
	char	   *server;
	char	   *sql;
	Jsonb	   *payload;		/* or NULL */
} AppParticipant;

/* How the row is locked. */
typedef enum AppLock
{
	APP_LOCK_NONE,
	APP_LOCK_SHARE,
	APP_LOCK_UPDATE
} AppLock;

/* twophase_app.c */
extern bool app_read(int64 gtid, AppLock lock, App *app);
extern void app_read_mine(FunctionCallInfo fcinfo, AppLock lock, App *app);
extern void app_set_status(App *app, AppEvent event, const char *reason, int64 decision);
extern AppParticipant *app_participants(int64 gtid, int *count);
extern void app_abort(App *app, AppEvent event, Oid role, const char *reason);
extern const char *twophase_app_outcome(int64 gtid);

#endif							/* COORD_TWOPHASE_APP_H */
