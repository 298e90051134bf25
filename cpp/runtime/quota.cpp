#include "runtime/quota.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <fstream>
#include <limits>
#include <sstream>
#include <string_view>
#include <vector>

namespace fusedstep::runtime {
namespace {

constexpr double kNoLimit = std::numeric_limits<double>::infinity();
// The period that holds where a file names none, in microseconds.
constexpr double kPeriod = 100'000.0;

std::vector<std::string> split(std::string_view text, char separator) {
  std::vector<std::string> parts;
  for (std::size_t begin = 0;;) {
    const std::size_t end = text.find(separator, begin);
    parts.emplace_back(text.substr(begin, end - begin));
    if (end == std::string_view::npos) return parts;
    begin = end + 1;
  }
}

bool has(const std::string& list, std::string_view name) {
  const std::vector<std::string> parts = split(list, ',');
  return std::find(parts.begin(), parts.end(), name) != parts.end();
}

// NaN where the text is no number.
double number(const std::string& text) {
  double value = NAN;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  return error == std::errc{} && end == text.data() + text.size() ? value : NAN;
}

std::vector<std::string> words_of(const std::string& path) {
  std::ifstream file(path);
  std::vector<std::string> words;
  for (std::string word; words.size() < 2 && file >> word;) words.push_back(word);
  return words;
}

// "max", a missing file and one that cannot be parsed limit nothing; version 1 writes -1 for "max".
double limit(double quota, double period) {
  const bool limits = quota > 0.0 && period > 0.0 && std::isfinite(quota) && std::isfinite(period);
  return limits ? quota / period : kNoLimit;
}

double limit_of(const std::string& group, bool unified) {
  if (unified) {
    const std::vector<std::string> words = words_of(group + "/cpu.max");
    return words.empty() ? kNoLimit : limit(number(words[0]), words.size() > 1 ? number(words[1]) : kPeriod);
  }
  const std::vector<std::string> quota = words_of(group + "/cpu.cfs_quota_us");
  const std::vector<std::string> period = words_of(group + "/cpu.cfs_period_us");
  return quota.empty() ? kNoLimit : limit(number(quota[0]), period.empty() ? kPeriod : number(period[0]));
}

// mountinfo writes a blank as \040.
std::string unescaped(const std::string& text) {
  std::string plain;
  for (std::size_t k = 0; k < text.size(); ++k) {
    int code = 0;
    if (text[k] == '\\' && k + 3 < text.size() &&
        std::from_chars(&text[k + 1], &text[k + 1] + 3, code, 8).ptr == &text[k + 1] + 3) {
      plain += char(code);
      k += 3;
    } else {
      plain += text[k];
    }
  }
  return plain;
}

// Where the processor's groups are mounted, and from which group on.
struct Mount {
  bool unified;
  std::string root, point;
};

std::vector<Mount> mounts_of(const std::string& root) {
  std::vector<Mount> mounts;
  std::ifstream file(root + "/proc/self/mountinfo");
  for (std::string line; std::getline(file, line);) {
    const std::vector<std::string> fields = split(line, ' ');
    const auto dash = std::find(fields.begin(), fields.end(), "-");
    if (dash - fields.begin() < 6 || fields.end() - dash < 4) continue;
    const bool unified = dash[1] == "cgroup2";
    if (!unified && !(dash[1] == "cgroup" && has(dash[3], "cpu"))) continue;
    mounts.push_back({unified, unescaped(fields[3]), unescaped(fields[4])});
  }
  return mounts;
}

// The process's own group; false where it is in none.
bool find_group(const std::string& root, bool unified, std::string& group) {
  std::ifstream file(root + "/proc/self/cgroup");
  for (std::string line; std::getline(file, line);) {
    const std::size_t first = line.find(':'), second = line.find(':', first + 1);
    if (first == std::string::npos || second == std::string::npos) continue;
    const std::string id = line.substr(0, first), controllers = line.substr(first + 1, second - first - 1);
    if (unified ? !(id == "0" && controllers.empty()) : !has(controllers, "cpu")) continue;
    group = line.substr(second + 1);
    return true;
  }
  return false;
}

// The process's group, relative to the one that is mounted; the mounted one where a namespace hides the path.
std::string below(std::string mounted, const std::string& group) {
  if (mounted == "/") mounted.clear();
  const bool within = group.compare(0, mounted.size(), mounted) == 0 &&
                      (group.size() == mounted.size() || group[mounted.size()] == '/');
  const std::string path = within ? group.substr(mounted.size()) : "";
  const std::vector<std::string> parts = split(path, '/');
  return std::find(parts.begin(), parts.end(), "..") == parts.end() ? path : "";
}

}  // namespace

double processor_quota(const std::string& root) {
  double quota = kNoLimit;
  for (const Mount& mount : mounts_of(root)) {
    std::string group;
    if (!find_group(root, mount.unified, group)) continue;
    std::string path = below(mount.root, group);
    while (!path.empty() && path.back() == '/') path.pop_back();
    // Every group limits those within it.
    for (;;) {
      quota = std::min(quota, limit_of(root + mount.point + path, mount.unified));
      if (path.empty()) break;
      path.erase(path.rfind('/'));
    }
  }
  return quota;
}

}  // namespace fusedstep::runtime
