/*-------------------------------------------------------------------------
 *
 * json_path.h
 *	  Paths of definitions; see json_path.c.
 *
 *-------------------------------------------------------------------------
 */
#ifndef COORD_JSON_PATH_H
#define COORD_JSON_PATH_H

#include "postgres.h"

#include "utils/jsonb.h"
#include "utils/jsonpath.h"

extern Jsonb *json_path_query(JsonPath *path, Jsonb *document, bool first);
extern bool json_path_holds(JsonPath *path, Jsonb *document);

#endif							/* COORD_JSON_PATH_H */
