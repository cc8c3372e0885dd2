# node-gyp and prebuildify come here and are sent on: CMakeLists.txt is the only build definition.
{
  "targets": [
    {
      "target_name": "diffqkv",
      "type": "none",
      "actions": [
        {
          "action_name": "cmake",
          "inputs": ["CMakeLists.txt"],
          "outputs": ["<(module_root_dir)/build/.always"],
          "action": ["node", "<(module_root_dir)/scripts/build-native.js"]
        }
      ]
    }
  ]
}
