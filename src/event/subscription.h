/*-------------------------------------------------------------------------
 *
 * subscription.h
 *	  Subscriptions; see subscription_store.c.
 *
 *-------------------------------------------------------------------------
 */
#ifndef COORD_SUBSCRIPTION_H
#define COORD_SUBSCRIPTION_H

#include "postgres.h"

#include "datatype/timestamp.h"
#include "fmgr.h"
#include "storage/lock.h"
#include "utils/jsonb.h"
#include "utils/jsonpath.h"

#include "base/query.h"

#define SUBSCRIPTION_MAX_BATCH 10000

/* A cursor is moved over so many positions with nothing to handle. */
#define SUBSCRIPTION_IDLE_POSITIONS 1000

typedef enum OnError
{
	ON_ERROR_PARK_KEY,			/* what has the same key waits behind it */
	ON_ERROR_PARK_EVENT,
	ON_ERROR_STOP				/* everything does */
} OnError;

typedef struct Subscription
{
	int64		id;
	char	   *name;
	Oid			owner;
	char	   *search_path;
	Datum		types;			/* text[] */
	Datum		streams;		/* text[], 0: none given */
	char	   *handler;		/* NULL: a consumer outside polls */
	bool		takes_event;	/* coord.event, else jsonb */
	char	   *emits;
	JsonPath   *filter;
	bool		batch;
	int			batch_size;
	int			max_attempts;
	OnError		on_error;
	bool		paused;
	bool		problem;		/* one was noted */

	/* The cursor. */
	int64		move;
	int64		position;
} Subscription;

/* An event that was read. */
typedef struct Event
{
	int64		pos;
	char	   *key;			/* what must stay in order: key, else stream */
	Datum		row;			/* coord.event */
	int			attempts;		/* before this one; of items */
} Event;

/* subscription_store.c */
extern Subscription *subscription_load(int64 id);
extern Subscription *subscription_by_name(const char *name);
extern bool subscription_lock(int64 id, bool wait);
extern void subscription_unlock(int64 id);
extern VirtualTransactionId *subscription_holders(int64 id);
extern void subscription_move(Subscription *subscription, int64 position);
extern int	subscription_read(const Subscription *subscription, int64 after, int64 upto, int max,
							  Event **events, int64 *reached);
extern int	subscription_read_items(Statement *statement, Datum *values, bool latest, Event **events);
extern int	subscription_items(const Subscription *subscription, int max, Event **events);
extern bool subscription_has_items(const Subscription *subscription);
extern bool subscription_key_is_blocked(const Subscription *subscription, const char *key);
extern void subscription_put_aside(const Subscription *subscription, const Event *event, bool due);
extern void subscription_item_done(const Subscription *subscription, int64 pos);
extern void subscription_item_failed(const Subscription *subscription, const Event *event, int attempts,
									 TimestampTz due_at, const char *sqlstate, const char *message);
extern void subscription_item_due(const Subscription *subscription, int64 pos);
extern void subscription_order_keys(const Subscription *subscription);
extern TimestampTz subscription_next_due(int64 id);
extern Oid	event_row_type(void);
extern Datum event_field(const Event *event, int column, bool *isnull);
extern Jsonb *event_document(const Event *event);

/* subscription_define.c */
extern Datum coord_subscribe(PG_FUNCTION_ARGS);
extern Datum coord_subscription_seek(PG_FUNCTION_ARGS);
extern Subscription *subscription_lock_mine(const char *name);
extern Oid	subscription_handler(const Subscription *subscription, char **reason);

#endif							/* COORD_SUBSCRIPTION_H */
