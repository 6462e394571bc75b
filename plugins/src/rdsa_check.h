/* What one call of the op must satisfy, checked before any work. */
#ifndef SDST_RDSA_CHECK_H
#define SDST_RDSA_CHECK_H

#include "sdst/rdsa.h"

namespace sdst {

/* SDST_OK, or a failure whose message names the member, what was expected and what came. */
int check(const sdst_rdsa_problem* problem) noexcept;

/* Values in a 16-byte pack of an sdst_type: 4 or 8. */
int pack_count(int32_t type);

/* Points that a step of the kernel takes: 4 when there are 4 in all, else 2 or 1; the alignment of endpoints allows it.
 */
int point_step(const sdst_rdsa_problem& problem);

}  // namespace sdst

#endif
