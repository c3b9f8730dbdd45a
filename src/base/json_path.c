/*-------------------------------------------------------------------------
 *
 * json_path.c
 *	  Paths of definitions on the documents that user code is given.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "fmgr.h"
#include "utils/fmgrprotos.h"

#include "base/json.h"
#include "base/json_path.h"

/* The items of a path as an array, or (first) its first item or NULL. */
Jsonb *
json_path_query(JsonPath *path, Jsonb *document, bool first)
{
	LOCAL_FCINFO(fcinfo, 4);
	JsonWriter	writer = {0};
	Datum		result;

	json_begin_object(&writer);
	json_end_object(&writer);
	InitFunctionCallInfoData(*fcinfo, NULL, 4, InvalidOid, NULL, NULL);
	fcinfo->args[0].value = JsonbPGetDatum(document);
	fcinfo->args[0].isnull = false;
	fcinfo->args[1].value = PointerGetDatum(path);
	fcinfo->args[1].isnull = false;
	fcinfo->args[2].value = JsonbPGetDatum(json_finish(&writer));
	fcinfo->args[2].isnull = false;
	fcinfo->args[3].value = BoolGetDatum(false);
	fcinfo->args[3].isnull = false;
	result = first ? jsonb_path_query_first_tz(fcinfo) : jsonb_path_query_array_tz(fcinfo);
	return fcinfo->isnull ? NULL : DatumGetJsonbP(result);
}

/*
 * The first item of the path: a boolean as it is, none or null is false, anything
 * else true.
 */
bool
json_path_holds(JsonPath *path, Jsonb *document)
{
	Jsonb	   *item = json_path_query(path, document, true);
	JsonbValue	value;

	if (item == NULL)
		return false;
	if (!JB_ROOT_IS_SCALAR(item))
		return true;
	JsonbExtractScalar(&item->root, &value);
	if (value.type == jbvNull)
		return false;
	return value.type != jbvBool || value.val.boolean;
}
