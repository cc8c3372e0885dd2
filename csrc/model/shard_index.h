// model.safetensors.index.json: which tensor lies in which shard.
#pragma once

#include <map>
#include <set>
#include <string>

namespace diffqkv {

struct ShardIndex {
  std::set<std::string> shards;                        // plain names of files
  std::map<std::string, const std::string*> shard_of;  // tensor -> one of shards
};

ShardIndex read_shard_index(const std::string& path);

}  // namespace diffqkv
