/*-------------------------------------------------------------------------
 *
 * event_log.h
 *	  The table of published events; see event_log.c.
 *
 *-------------------------------------------------------------------------
 */
#ifndef COORD_EVENT_LOG_H
#define COORD_EVENT_LOG_H

#include "postgres.h"

#include "utils/jsonb.h"
#include "utils/timestamp.h"
#include "utils/uuid.h"

/* What is published.  NULL: not given. */
typedef struct PublishedEvent
{
	text	   *type;
	text	   *key;
	Jsonb	   *data;
	Jsonb	   *metadata;
	pg_uuid_t  *event_id;
	pg_uuid_t  *correlation_id;
} PublishedEvent;

extern const pg_uuid_t *event_cause;

extern void event_check_type(const char *type);
extern int64 event_log_insert(const PublishedEvent *event, TimestampTz at, Oid owner);
extern pg_uuid_t *event_default_correlation(void);
extern pg_uuid_t *event_random_id(void);

#endif							/* COORD_EVENT_LOG_H */
