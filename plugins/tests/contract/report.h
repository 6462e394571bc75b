/* One line a check: "ok NAME", or "FAIL NAME: what was seen". */
#ifndef SDST_CONTRACT_REPORT_H
#define SDST_CONTRACT_REPORT_H

#include <iostream>
#include <string>

namespace contract {

class Report {
  public:
    void check(const std::string& name, bool passed, const std::string& seen = "") {
        std::cout << (passed ? "ok " : "FAIL ") << name << (passed ? "" : ": " + seen)
                  << std::endl;  // it may crash next
        failures_ += passed ? 0 : 1;
        checks_ += 1;
    }

    int checks() const { return checks_; }
    int failures() const { return failures_; }

  private:
    int checks_ = 0;
    int failures_ = 0;
};

}  // namespace contract

#endif
