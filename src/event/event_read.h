/*-------------------------------------------------------------------------
 *
 * event_read.h
 *	  Reading events; see event_read.c.
 *
 *-------------------------------------------------------------------------
 */
#ifndef COORD_EVENT_READ_H
#define COORD_EVENT_READ_H

#include "postgres.h"

/* The columns of coord.event, of a row v of stream_event. */
#define EVENT_OF_STREAM \
	"v.pos, v.stream, v.version, v.type, NULL::text, v.data, v.metadata, v.event_id," \
	" v.coordination_id, v.step_id, v.correlation_id, v.causation_id, v.published_at"

/*
 * The stream of v, if who asks may use it: $role is he, or $all is true.  Statements run
 * as somebody else, so it is not the current user.
 */
#define VISIBLE_STREAM(role, all) \
	" JOIN coord_internal.stream s ON s.stream = v.stream AND (" all \
	" OR pg_has_role(" role ", s.owner, 'MEMBER') OR EXISTS (SELECT FROM coord_internal.use_grant g" \
	"  WHERE g.kind = 'stream' AND starts_with(s.stream, g.name) AND pg_has_role(" role ", g.role, 'MEMBER')" \
	"  AND (pg_has_role(g.granted_by, s.owner, 'MEMBER') OR pg_has_role(g.granted_by, 'coord_admin', 'MEMBER'))))"

extern void event_set_reader(Datum *values);
extern void event_read_patterns(const char *what, Datum patterns, Datum *exact, Datum *prefixes, bool *all);

#endif							/* COORD_EVENT_READ_H */
