// The end of a program under a sanitizer: read one launch from a file, run it, write its arrays back to that file.

#include <cstdio>
#include <string>

static void dispatch(const std::string &name, const unsigned *dims, std::size_t bytes, void **values) {
    // KERNELS
    throw std::runtime_error("no kernel " + name);
}

static void read(std::FILE *file, void *to, std::size_t bytes) {
    if (bytes && std::fread(to, bytes, 1, file) != 1) throw std::runtime_error("the launch is cut short");
}

int main(int, char **arguments) {
    std::FILE *file = std::fopen(arguments[1], "rb");
    char name[65] = {};
    unsigned dims[4], count;
    std::uint64_t shared;
    read(file, name, 64);
    read(file, dims, sizeof dims);
    read(file, &shared, 8);
    read(file, &count, 4);
    std::vector<std::unique_ptr<char[]>> held;  // each array in an allocation of its own: a step outside is seen
    std::vector<std::uint64_t> sizes;
    std::vector<void *> pointers(count), values(count);
    for (unsigned a = 0; a < count; ++a) {
        unsigned is_array;
        std::uint64_t bytes;
        read(file, &is_array, 4);
        read(file, &bytes, 8);
        held.emplace_back(new char[bytes]);
        read(file, held.back().get(), bytes);
        pointers[a] = held.back().get();
        values[a] = is_array ? static_cast<void *>(&pointers[a]) : pointers[a];
        sizes.push_back(is_array ? bytes : 0);
    }
    std::fclose(file);
    dispatch(name, dims, shared, values.data());
    file = std::fopen(arguments[1], "wb");
    for (unsigned a = 0; a < count; ++a)
        if (sizes[a]) std::fwrite(held[a].get(), sizes[a], 1, file);
    std::fclose(file);
}
