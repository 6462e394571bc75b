/* The checks of the contract, by subject. */
#ifndef SDST_CONTRACT_CHECKS_H
#define SDST_CONTRACT_CHECKS_H

#include "plugin_library.h"
#include "report.h"

namespace contract {

void check_creator(const PluginLibrary& library, Report& report);    // entry points, interfaces, fields
void check_building(const PluginLibrary& library, Report& report);   // types, output shapes, formats, timing cache
void check_shapes(const PluginLibrary& library, Report& report);     // configurePlugin and onShapeChange
void check_lifecycle(const PluginLibrary& library, Report& report);  // serialise, recreate, clone, attach
void check_enqueue(const PluginLibrary& library, Report& report);    // numbers, and what enqueue refuses

/* A refusal: a status or null, and one line that names what it is about. */
void check_refusal(const PluginLibrary& library, Report& report, const std::string& name, bool refused,
                   const std::string& about);

}  // namespace contract

#endif
