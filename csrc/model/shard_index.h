// model.safetensors.index.json: which shard has which tensor.
#pragma once

#include <map>
#include <set>
#include <string>

namespace diffqkv {

struct ShardIndex {
  std::set<std::string> shards;                        // file names without a directory
  std::map<std::string, const std::string*> shard_of;  // tensor -> one of shards
};

ShardIndex read_shard_index(const std::string& path);

}  // namespace diffqkv
