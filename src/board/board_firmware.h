/* board_firmware.h: a machine that begins with firmware, board_firmware.c. Private to the board. */
#pragma once

#include "board/board.h"

/* Its place in the map, which must be known before there is an engine. */
int board_firmware_map(struct board *board, const struct board_config *config, struct err *err);
/* Reads the image into it, at first and after each reset. */
int board_firmware_load(struct board *board, struct err *err);
/* How wide physical addresses are to be; 0 without firmware. */
unsigned board_firmware_bits(const struct board *board);
/* Flash, LPC bridge and fw_cfg; when all disks are made. */
int board_firmware_make(struct board *board, const struct board_firmware *config, struct err *err);
