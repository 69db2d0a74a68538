// Memory that is aligned, or becomes resident only when it is written.
#pragma once

#include <sys/mman.h>

#include <cstdint>
#include <cstdlib>
#include <new>
#include <utility>

namespace warmstart {

template <class T>
class Buffer {  // aligned, never initialized
  public:
    void reserve(size_t count) {
        if (count <= size_) return;
        std::free(data_);
        size_ = count;
        data_ = (T*)std::aligned_alloc(64, (count * sizeof(T) + 63) / 64 * 64);
        if (!data_) {
            size_ = 0;
            throw std::bad_alloc();
        }
    }
    ~Buffer() { std::free(data_); }
    T* get() const { return data_; }
    void swap(Buffer& other) {
        std::swap(data_, other.data_);
        std::swap(size_, other.size_);
    }

  private:
    T* data_ = nullptr;
    size_t size_ = 0;
};

// Memory for keys and values: the system provides a page when it is first written, so an idle service uses none.
class Pages {
  public:
    explicit Pages(size_t bytes) : bytes_(bytes) {
        void* found = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (found == MAP_FAILED) throw std::bad_alloc();
        data_ = (uint8_t*)found;
    }
    ~Pages() { munmap(data_, bytes_); }
    Pages(const Pages&) = delete;
    Pages& operator=(const Pages&) = delete;
    uint8_t* get() const { return data_; }

  private:
    uint8_t* data_;
    size_t bytes_;
};

}  // namespace warmstart
