/*-------------------------------------------------------------------------
 *
 * json.h
 *	  Building and reading jsonb with one call per member.
 *
 *-------------------------------------------------------------------------
 */
#ifndef COORD_JSON_H
#define COORD_JSON_H

#include "postgres.h"

#include "utils/numeric.h"

#include "base/compat.h"

typedef struct JsonWriter
{
	JsonbInState state;
} JsonWriter;

/*
 * A member of an object to be written at once.  An object's parts are in
 * jsonb's order of keys: length, then bytes.
 */
typedef struct JsonPart
{
	const char *key;
	int			key_length;
	bool		present;
	JsonbValue	value;			/* a scalar, or jbvBinary */
} JsonPart;

extern Jsonb *json_from_parts(const JsonPart *parts, int count);
extern int	json_compare_parts(const void *a, const void *b);
extern void json_part_key(JsonPart *part, const char *key);
extern void json_part_string(JsonPart *part, const char *key, const char *value);
extern void json_part_integer(JsonPart *part, const char *key, int64 value);
extern void json_part_jsonb(JsonPart *part, const char *key, Jsonb *value);

/* json_object.c */
typedef struct JsonObject JsonObject;

extern JsonObject *json_object_make(const JsonPart *parts, int count);
extern bool json_object_put(JsonObject *object, uint32 rank, const JsonPart *part);
extern Jsonb *json_object_document(JsonObject *object, const JsonPart *parts, int count,
								   int place);
extern void json_object_value(JsonObject *object, JsonbValue *value);

extern void json_begin_object(JsonWriter *writer);
extern void json_end_object(JsonWriter *writer);
extern void json_begin_array(JsonWriter *writer);
extern void json_end_array(JsonWriter *writer);
extern void json_key(JsonWriter *writer, const char *key);
extern void json_string(JsonWriter *writer, const char *value);
extern void json_string_element(JsonWriter *writer, const char *value);
extern void json_integer(JsonWriter *writer, int64 value);
extern void json_bool(JsonWriter *writer, bool value);
extern void json_null(JsonWriter *writer);
extern void json_numeric(JsonWriter *writer, Numeric value);
extern void json_value(JsonWriter *writer, Jsonb *value);
extern void json_element(JsonWriter *writer, Jsonb *value);
extern void json_member(JsonWriter *writer, JsonbValue *value);
extern Jsonb *json_finish(JsonWriter *writer);

extern JsonbValue *json_get(Jsonb *object, const char *key, JsonbValue *result);
extern char *json_get_text(Jsonb *object, const char *key);
extern bool json_is_object(Jsonb *value);

#endif							/* COORD_JSON_H */
