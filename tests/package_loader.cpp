// Runs a package of AOTInductor without Python: PACKAGE INPUTS OUTPUTS, lists of tensors as torch.save writes them.
#include <torch/csrc/inductor/aoti_package/model_package_loader.h>
#include <torch/csrc/jit/serialization/pickle.h>

#include <fstream>
#include <iterator>

int main(int, char** arguments) {
  torch::inductor::AOTIModelPackageLoader package(arguments[1]);
  std::ifstream file(arguments[2], std::ios::binary);
  const std::vector<char> bytes{std::istreambuf_iterator<char>(file), {}};
  const c10::IValue list = torch::jit::pickle_load(bytes);
  std::vector<at::Tensor> inputs;
  for (const c10::IValue& input : list.toListRef()) inputs.push_back(input.toTensor());
  const auto outputs = torch::jit::pickle_save(package.run(inputs));
  std::ofstream(arguments[3], std::ios::binary).write(outputs.data(), static_cast<std::streamsize>(outputs.size()));
}
