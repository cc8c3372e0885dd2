// Runs before each test file: no test reaches the network or the home directory through the hub. A
// test that needs a hub starts one (test/hub/fake_hub.cjs) and sets these variables.
process.env.HF_ENDPOINT = 'http://127.0.0.1:9';
process.env.HF_HOME = '/nonexistent/diffqkv-tests';
for (const name of ['HF_TOKEN', 'HUGGING_FACE_HUB_TOKEN', 'HF_TOKEN_PATH', 'HF_HUB_CACHE', 'HUGGINGFACE_HUB_CACHE'])
  delete process.env[name];
process.env.HF_HUB_OFFLINE = '1';
